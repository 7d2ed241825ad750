"""Where questions come from: a model that draws in the background, active choice, tests with known answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import app_server
import pytest
import torch
from starlette.testclient import TestClient

from visfeedback import store
from visfeedback.app.choosing import Active, Asking, gold, questions
from visfeedback.cli.collect import CollectFlags, opened
from visfeedback.cli.collect_images import gather, known_answers
from visfeedback.cli.collect_live import Live, Painter, prompts_for
from visfeedback.cli.console import Console
from visfeedback.plugins import InputError
from visfeedback.store.desk import Desk
from visfeedback.store.tasks import Answer
from visfeedback.types.records import Prompt, Sample

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")
PROMPTS = [Prompt.of(f"thing {n}") for n in range(3)]
SMALL = Live(ahead=3, batch=2, steps=1, device="cpu")


@pytest.fixture
def where(tmp_path: Path) -> Iterator[store.Store]:
    with store.open(f"sqlite:///{tmp_path}/p.db") as opened_store:
        yield opened_store


@pytest.fixture(scope="module")
def adapter(tiny_sd: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A LoRA that visibly changes the tiny model."""
    from visfeedback.backbones.load import load

    backbone = load(str(tiny_sd), device="cpu")
    backbone.add_lora(rank=2)
    with torch.no_grad():
        for number, parameter in enumerate(backbone.parameters()):
            generator = torch.Generator().manual_seed(number)
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    folder = tmp_path_factory.mktemp("lora")
    backbone.save_adapter(folder)
    return str(folder)


def painter(where: store.Store, model: Path, *adapters: str) -> Painter:
    return Painter(str(model), adapters, PROMPTS, SMALL, Asking(repeats=0), where, Desk(where, rules=app_server.PLAIN))


def drawn(where: store.Store, least: int) -> list[Sample]:
    app_server.until(lambda: len(list(where.samples())) >= least, 60)
    return list(where.samples())


def pairs(desk: Desk) -> list[tuple[str, ...]]:
    """The images of all questions, answered one after the other."""
    found = []
    while shown := desk.next("human:ada"):
        found.append(shown.task.sample_ids)
        desk.answer(shown.token, "human:ada", Answer(choice="tie"))
    return found


def test_a_model_alone_competes_with_itself_under_two_seeds(where: store.Store, tiny_sd: Path) -> None:
    live = painter(where, tiny_sd)
    live.start()
    app_server.until(lambda: live.status().ready >= SMALL.ahead, 60)
    live.stop()
    by_id = {sample.id: sample for sample in where.samples()}
    asked = pairs(live.desk)
    assert len(asked) >= SMALL.ahead
    for ids in asked:
        a, b = (by_id[name] for name in ids)
        assert a.prompt_id == b.prompt_id
        assert a.seed != b.seed
        assert a.model == str(tiny_sd)
    assert live.status().running is False
    assert live.status().problem == ""


def test_candidates_draw_with_the_same_seed(where: store.Store, tiny_sd: Path, adapter: str) -> None:
    live = painter(where, tiny_sd, adapter)
    live.start()
    app_server.until(lambda: live.status().ready >= SMALL.ahead, 60)
    live.stop()
    by_id = {sample.id: sample for sample in where.samples()}
    for ids in pairs(live.desk):
        a, b = (by_id[name] for name in ids)
        assert (a.prompt_id, a.seed) == (b.prompt_id, b.seed)
        assert {a.adapter, b.adapter} == {"", adapter}
    assert live.status().candidates == ("base", adapter)


def test_other_questions_are_drawn_as_well(where: store.Store, tiny_sd: Path, adapter: str) -> None:
    """Best of three by base and one adapter: each with the first seed, base again with another one."""
    asking = Asking(kind="best", group=3, repeats=0)
    live = Painter(str(tiny_sd), (adapter,), PROMPTS, SMALL, asking, where, Desk(where, rules=app_server.PLAIN))
    live._fill()
    by_id = {sample.id: sample for sample in where.samples()}
    shown = live.desk.next("human:ada")
    assert shown is not None
    made = [by_id[name] for name in shown.task.sample_ids]
    seeds = {name: [sample.seed for sample in made if sample.adapter == name] for name in ("", adapter)}
    assert len(set(seeds[""])) == 2
    assert seeds[adapter] == seeds[""][:1]


def test_switching_adapters_leaves_no_trace(where: store.Store, tiny_sd: Path, adapter: str) -> None:
    """base, adapter, base: the first and the last are equal bit for bit, the adapter differs; so does a fresh load."""
    from visfeedback.backbones.load import load_pipeline
    from visfeedback.sampling.render import render

    live = painter(where, tiny_sd, adapter)
    before, tuned, after = (live.draw(PROMPTS[:1], [7], name)[0].tobytes() for name in ("", adapter, ""))
    pipe = load_pipeline(str(tiny_sd), adapter=adapter, device="cpu").pipe
    alone = render(pipe, [PROMPTS[0].text], [7], settings=live.settings)[0].tobytes()
    assert before == after != tuned
    assert tuned == alone


def test_a_restart_draws_new_images(where: store.Store, tiny_sd: Path) -> None:
    first = painter(where, tiny_sd)
    first._fill()
    known = {(sample.prompt_id, sample.seed) for sample in where.samples()}
    second = painter(where, tiny_sd)
    second._fill()
    everything = [(sample.prompt_id, sample.seed) for sample in where.samples()]
    assert len(everything) == len(set(everything)) == 2 * len(known)


def test_a_candidate_that_joins_later_is_compared(where: store.Store, tiny_sd: Path, adapter: str) -> None:
    live = painter(where, tiny_sd)
    live.add_candidate(adapter)
    app_server.until(lambda: any(sample.adapter == adapter for sample in where.samples()), 60)
    live.stop()


def test_a_missing_adapter_is_refused(where: store.Store, tiny_sd: Path) -> None:
    with pytest.raises(InputError, match="nowhere"):
        painter(where, tiny_sd).add_candidate("nowhere")


def test_what_goes_wrong_while_drawing_is_said(
    where: store.Store, tiny_sd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = painter(where, tiny_sd)
    monkeypatch.setattr(live, "draw", lambda *args: 1 / 0)
    live.start()
    app_server.until(lambda: live.status().problem)
    assert live.status().problem == "ZeroDivisionError: division by zero"
    assert live.status().running is False


def test_an_empty_queue_fills_by_itself(tiny_sd: Path, tmp_path: Path) -> None:
    """Whoever asks before anything is drawn hears that it is being drawn; somebody who has judged all gets more."""
    flags = CollectFlags(
        store=f"sqlite:///{tmp_path}/p.db", model=str(tiny_sd), prompts="a cat", live=SMALL, ask=Asking(repeats=0),
        tabs=False,
    )  # fmt: skip
    with opened(flags, Console(quiet=True)) as context:
        person = app_server.Person(
            TestClient(app_server.local_app(context), base_url="http://127.0.0.1", cookies={})
        ).enter()
        votes = 0
        while votes < 2 * SMALL.ahead:
            answer = person.post("next").json()
            if answer["question"]:
                votes += person.vote(answer["question"]["token"], choice="left").status_code == 200
            else:
                assert answer["waiting"]["drawing"] is True
        assert context.rounds is not None


def test_prompts_of_a_model() -> None:
    assert prompts_for("shapes:sd", "") == "shapes:train"
    assert prompts_for("shapes:sd", "a.txt") == "a.txt"
    with pytest.raises(InputError, match="--prompts"):
        prompts_for("some/model", "")


# a set of images


def test_active_choice_asks_the_telling_pairs_first(where: store.Store, tmp_path: Path) -> None:
    """At most n pairs in all, `ahead` at a time; after votes other pairs come first."""
    made = app_server.samples(tmp_path / "images", prompts=3, each=4)
    where.add_samples(made, tmp_path / "images")
    desk = Desk(where, rules=app_server.PLAIN)
    active = Active(where, desk, made, Asking(repeats=0), n=7, ahead=4)
    assert active.choose() == 4
    assert desk.progress()["tasks"] == 4
    for _ in range(4):
        shown = desk.next("human:ada")
        assert shown is not None
        desk.answer(shown.token, "human:ada", Answer(choice="left"))
    assert active.choose() == 3
    assert active.choose() == 0
    assert desk.progress()["tasks"] == 7
    assert len(set(map(frozenset, pairs(desk)))) == 3


def test_active_choice_goes_on_in_the_background(where: store.Store, tmp_path: Path) -> None:
    made = app_server.samples(tmp_path / "images", prompts=4, each=4)
    where.add_samples(made, tmp_path / "images")
    desk = Desk(where, rules=app_server.PLAIN)
    active = Active(where, desk, made, Asking(repeats=0), n=None, ahead=6)
    active.start()
    assert len(pairs(desk)) == 6
    app_server.until(lambda: desk.progress()["tasks"] > 6)
    active.stop()


def test_groups_of_images(tmp_path: Path) -> None:
    """9 images of a prompt in fours: 4 + 4, and the last one alone is no group; single images are all asked."""
    made = app_server.samples(tmp_path, prompts=2, each=9)
    assert Counter(len(task.sample_ids) for task in questions(made, Asking(kind="ranking"))) == {4: 4}
    assert Counter(len(task.sample_ids) for task in questions(made, Asking(kind="rating"))) == {4: 4, 1: 2}
    assert Counter(len(task.sample_ids) for task in questions(made, Asking(kind="like"))) == {1: 18}
    assert len(questions(made, Asking(kind="like"), n=5)) == 5
    with pytest.raises(InputError, match="no prompt has 2 different images"):
        questions(made[:1], Asking(kind="best"))


def test_known_answers_from_a_pairs_file(where: store.Store, tmp_path: Path) -> None:
    made = app_server.samples(tmp_path, prompts=1, each=3)
    rows = [("a red cat", made[0].path, made[1].path, "a"), ("a red cat", made[1].path, made[2].path, "tie")]
    path = tmp_path / "gold.csv"
    path.write_text("prompt,image_a,image_b,label\n" + "".join(",".join(row) + "\n" for row in rows))
    tasks = gold(known_answers(where, path), Asking())
    assert [(task.gold, task.expected) for task in tasks] == [(True, "a"), (True, "tie")]
    path.write_text("prompt,image_a,image_b,label\n" + ",".join((*rows[0][:3], "0.7")) + "\n")
    with pytest.raises(InputError, match="one right answer"):
        known_answers(where, path)


def test_images_from_every_source(where: store.Store, tmp_path: Path) -> None:
    """samples.jsonl, a parquet, a folder with metadata.jsonl, the store: the same images, and what is bad is named."""
    import json

    import pyarrow as pa
    from pyarrow import parquet

    folder = tmp_path / "images"
    made = app_server.samples(folder, prompts=1, each=2)
    listed = [{"file_name": sample.path, "prompt": sample.prompt} for sample in made]
    cells = [{"bytes": (folder / sample.path).read_bytes(), "path": sample.path} for sample in made]
    parquet.write_table(pa.table({"image": cells, "prompt": [s.prompt for s in made]}), tmp_path / "a.parquet")
    (tmp_path / "samples.jsonl").write_text(
        "".join(s.model_copy(update={"path": f"images/{s.path}"}).model_dump_json() + "\n" for s in made)
    )
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in listed))
    (folder / "broken.png").write_bytes(b"no image")
    ids = [sample.id for sample in made]
    quiet = Console(quiet=True)
    for source in (tmp_path / "samples.jsonl", tmp_path / "a.parquet", folder, "store"):
        good, failed = gather(where, str(source), quiet)
        assert [sample.id for sample in good][:2] == ids
        assert len(failed) == (source == folder)
    with pytest.raises(InputError, match="no images"):
        (tmp_path / "empty").mkdir()
        gather(where, str(tmp_path / "empty"), quiet)
