"""What the people who run a collection may choose. Every field is a flag of `visfeedback collect`."""

from __future__ import annotations

from pydantic import Field

from visfeedback.types.records import Frozen


class Collect(Frozen):
    """The words and habits of one collection."""

    title: str = "Which image is better?"
    """stands above the images"""
    instructions: str = ""
    """what to look for; a text, or a .txt or .md file; shown above the first question and behind the key h"""
    invitation: str = ""
    """shown before anybody starts and on the log-in page; a text or a .txt or .md file"""
    consent: str = ""
    """what people agree to before they start; a text or a .txt or .md file; without it nobody is asked"""
    blur: bool = False
    """images are blurred until somebody asks to see them"""
    ask_note: bool = False
    """a line for a reason under every question"""
    public_hosts: tuple[str, ...] = ()
    """names under which the app is reached from elsewhere, such as collect.example.org behind a proxy"""
    behind_proxy: bool = False
    """trust X-Forwarded-For and -Proto of a proxy on this machine"""
    session_days: float = Field(default=30.0, gt=0)
    """how long a log-in lasts"""
    judge_rate: float = Field(default=10.0, gt=0)
    """requests a second that one judge may make for long; short bursts may be faster"""
    address_rate: float = Field(default=200.0, gt=0)
    """the same for one network address, behind which there may be many people"""
    upload_mib: int = Field(default=64, ge=0, le=4096)
    """MiB of a file that an operator may send to the Data tab; 0 takes none"""
    tabs: bool = True
    """operators get the Gradio tabs; without them there is the Compare screen alone"""
    max_side: int = Field(default=2048, ge=64)
    """pixels of the longer side of a served image; larger ones are made smaller for the screen only"""
