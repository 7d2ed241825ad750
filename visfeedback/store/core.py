"""The store itself: what goes in, what comes out."""

from __future__ import annotations

import secrets
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from sqlalchemy import URL, Connection, Engine, Executable, func, select

from visfeedback.plugins import InputError
from visfeedback.store import database, rows, schema
from visfeedback.store.images import BadImage, ImageFolder, Picture, inspect, read
from visfeedback.store.tables import feedback, images, meta, prompts, samples
from visfeedback.types.records import Feedback, Prompt, Sample, now, text_id

CHUNK = 500  # rows handled at a time; also below every limit on bound parameters
ROUND = "rounds"
"""criterion of `text` records that say what a session in rounds has drawn: kept with feedback, said by nobody"""

url_of = database.url_of


class Drawn(NamedTuple):
    """A sample and the bytes of its image; without them it is known by name only, as in lists of votes alone."""

    sample: Sample
    data: bytes = b""
    picture: Picture | None = None  # `inspect(data, ...)`


def open(url: str, *, images: Path | None = None, create: bool = True) -> Store:
    """Open a store, creating or migrating it when needed. Safe when several processes do this at once.

    ``url``: ``sqlite:///prefs.db`` or a PostgreSQL URL. ``images``: where image files go; by default beside the SQLite
    file (``prefs.images``), for PostgreSQL ``NAME.images`` in the folder where the store was created, remembered there.
    ``create=False``: a store that does not exist is an error, for commands that only read.
    Raises InputError for whatever is wrong with the URL, the file, the folder or the version.
    """
    parsed = database.parse(url)
    if not create:
        _require(parsed)
    name = parsed.render_as_string(hide_password=True) if parsed.host else str(parsed.database)
    reader, writer = database.engines(parsed)
    try:
        with database.clear_errors(name):
            schema.bring_up_to_date(reader, writer, name)
            folder = _images_folder(parsed, reader, writer, images)
    except BaseException:
        reader.dispose()
        raise
    return Store(parsed, name, reader, writer, ImageFolder(folder))


def _require(url: URL) -> None:
    if url.get_backend_name() == "sqlite" and not Path(url.database or "").is_file():
        raise InputError(f"no store at {url.database}; visfeedback label --store {url} makes one")


def _images_folder(url: URL, reader: Engine, writer: Engine, wanted: Path | None) -> Path:
    """Also leaves a note of who made the store."""
    with reader.connect() as connection:
        notes = {row.key: row.value for row in connection.execute(select(meta))}
    default = {"created_at": now().isoformat(), "created_by": f"visfeedback {_our_version()}"}
    beside = Path(url.database or "").absolute()
    if url.get_backend_name() == "sqlite":
        folder = wanted or beside.with_suffix(".images")
    else:
        folder = wanted or Path(notes.get("images") or Path.cwd() / f"{url.database}.images")
        default["images"] = str(folder.absolute())
    if default.keys() - notes.keys():
        with writer.begin() as connection:
            rows.insert_new(connection, meta, [{"key": key, "value": value} for key, value in default.items()])
    return folder


def _our_version() -> str:
    try:
        return installed_version("visfeedback")
    except PackageNotFoundError:
        return "from source"


class Store:
    """An open store; a context manager. May be shared by threads; do not carry one across a fork.

    Every method raises InputError with one line for a full disk, a missing permission or a damaged file.
    """

    def __init__(self, url: URL, name: str, reader: Engine, writer: Engine, folder: ImageFolder) -> None:
        self.url = url
        self.name = name
        self.image_folder = folder
        self._reader = reader
        self._writer = writer

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give back files and connections; what was acknowledged is on disk already."""
        self._reader.dispose()

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A connection that sees one moment of the store; writers go on meanwhile."""
        with database.clear_errors(self.name), self._reader.connect() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """One transaction; when the block ends without an error it is on disk."""
        with database.clear_errors(self.name), self._writer.begin() as connection:
            yield connection

    # what goes in

    def add_prompts(self, records: Iterable[Prompt]) -> None:
        """Add prompts; of known ones, empty source, category and split are filled in."""
        with self.writing() as connection:
            for part in rows.chunks(records, CHUNK):
                rows.fill_in_prompts(connection, part)

    def add_samples(self, records: Iterable[Sample], root: Path | str = ".") -> int:
        """Add samples with their images and prompts; returns how many were new. Paths are relative to ``root``.

        Works through the records in steps of 500: an error leaves whole earlier steps behind, and repeating is safe.
        Raises BadImage (an InputError) naming the file when an image is missing, damaged, or not the one that its
        sample describes.
        """
        return sum(self._add_samples(part, Path(root)) for part in rows.chunks(records, CHUNK))

    def _add_samples(self, part: list[Sample], root: Path) -> int:
        new = self._unknown({rows.sample_digest(sample): sample for sample in part})
        return self._write_samples(part, [_load(sample, root) for sample in new])

    def add_drawn(self, drawn: Iterable[Drawn]) -> int:
        """Add samples whose images are in memory, or that have none; returns how many were new.

        One transaction for each 500. ``sample.id`` must be ``picture.id`` where there is a picture.
        """
        added = 0
        for part in rows.chunks(drawn, CHUNK):
            wanted = {rows.sample_digest(one.sample): one.sample for one in part}
            new = {rows.sample_digest(sample) for sample in self._unknown(wanted)}
            fresh = {digest: one for one in part if (digest := rows.sample_digest(one.sample)) in new}
            added += self._write_samples([one.sample for one in part], list(fresh.values()))
        return added

    def _write_samples(self, part: list[Sample], new: list[Drawn]) -> int:
        pictures = [one.picture for one in new if one.picture]
        for sample in part:
            rows.prompt_of(sample)  # an empty prompt is refused before anything is written
        with _file_errors(self.image_folder.root):  # files first: a row never names a missing one
            for one in new:
                if one.picture:
                    self.image_folder.put(one.data, one.picture.sha256, one.picture.suffix)
        with self.writing() as connection:
            rows.fill_in_prompts(connection, [rows.prompt_of(sample) for sample in part])
            rows.insert_new(connection, images, [rows.image_row(picture) for picture in pictures])
            known = [rows.sample_row(one.sample, one.picture.sha256 if one.picture else None) for one in new]
            rows.insert_new(connection, samples, known)
        return len(new)

    def _unknown(self, by_digest: dict[str, Sample]) -> list[Sample]:
        """Those whose row or image file is not here yet."""
        query = select(samples.c.digest, images.c.sha256, images.c.suffix).outerjoin_from(samples, images)
        with self.reading() as connection:
            found = connection.execute(query.where(samples.c.digest.in_(by_digest))).all()
        folder = self.image_folder
        here = {row.digest for row in found if not row.sha256 or folder.path(row.sha256, row.suffix).is_file()}
        return [sample for digest, sample in by_digest.items() if digest not in here]

    def add_feedback(self, records: Iterable[Feedback]) -> int:
        """Append in one transaction; returns how many were new. On return all survives kill -9, on error none is in.

        Adding a record again changes nothing. Raises InputError when an id is taken by a different record.
        """
        with self.writing() as connection:
            return sum(self.append(connection, part) for part in rows.chunks(records, CHUNK))

    def append(self, connection: Connection, part: list[Feedback]) -> int:
        """As `add_feedback`, for at most 500 records, inside a transaction of `writing`."""
        query = select(feedback.c.id, feedback.c.record).where(feedback.c.id.in_({record.id for record in part}))
        taken = {row.id: Feedback.model_validate_json(row.record) for row in connection.execute(query)}
        new: list[Feedback] = []
        for record in part:
            if record.id not in taken:
                new.append(record)
            elif not rows.same(taken[record.id], record):
                raise InputError(
                    f"feedback {record.id} is in the store with another answer; give new feedback a new id"
                )
            taken[record.id] = record
        rows.insert_new(connection, feedback, [rows.feedback_row(record) for record in new])
        return len(new)

    def retract(self, feedback_id: str, judge: str, note: str = "") -> Feedback:
        """Take a record back by a tombstone, which is returned; doing it twice leaves one tombstone."""
        with self.reading() as connection:
            kind = connection.scalar(select(feedback.c.kind).where(feedback.c.id == feedback_id))
        if kind is None or kind == "tombstone":
            raise InputError(f"no feedback {feedback_id} to take back; a tombstone itself is final, so judge again")
        name = text_id("tombstone", feedback_id)
        tombstone = Feedback(id=name, kind="tombstone", judge=judge, retracts=feedback_id, note=note)
        with self.writing() as connection:
            rows.insert_new(connection, feedback, [rows.feedback_row(tombstone)])
        return tombstone

    # what comes out, in the order of arrival

    def prompts(self) -> Iterator[Prompt]:
        for row in self._stream(select(prompts).order_by(prompts.c.id)):
            yield Prompt(**row._mapping)

    def samples(self, with_image: bool = True) -> Iterator[Sample]:
        """Samples with the absolute paths of their image files in the store.

        ``with_image=False``: also those that are known by name only; their path is empty.
        """
        query = select(samples.c.record, images.c.sha256, images.c.suffix).outerjoin_from(samples, images)
        if with_image:
            query = query.where(samples.c.image.is_not(None))
        for row in self._stream(query.order_by(samples.c.row)):
            yield Sample.model_validate_json(row.record).model_copy(update={"path": self._path(row)})

    def _path(self, row: Any) -> str:
        return str(self.image_folder.path(row.sha256, row.suffix).absolute()) if row.sha256 else ""

    def feedback(self, include_retracted: bool = False, judge: str | None = None) -> Iterator[Feedback]:
        """What was said and holds.

        ``include_retracted``: every record, also what was taken back, tombstones, and notes of what was drawn.
        """
        query = select(feedback.c.record).order_by(feedback.c.row)
        if not include_retracted:
            gone = select(feedback.c.retracts).where(feedback.c.kind == "tombstone")
            query = query.where(feedback.c.kind != "tombstone", feedback.c.id.not_in(gone))
            query = query.where((feedback.c.kind != "text") | (feedback.c.criterion != ROUND))
        if judge is not None:
            query = query.where(feedback.c.judge == judge)
        for row in self._stream(query):
            yield Feedback.model_validate_json(row.record)

    def samples_of(self, sample_ids: Collection[str]) -> dict[tuple[str, str], Sample]:
        """(prompt id, sample id) -> sample, for those that are here; path "" where nobody has the image.

        The same picture made in several ways counts as the one that came first.
        """
        query = select(samples.c.record, images.c.sha256, images.c.suffix).outerjoin_from(samples, images)
        found: dict[tuple[str, str], Sample] = {}
        with self.reading() as connection:
            for part in rows.chunks(sample_ids, CHUNK):
                for row in connection.execute(query.where(samples.c.id.in_(part)).order_by(samples.c.row)):
                    sample = Sample.model_validate_json(row.record)
                    key = (sample.prompt_id, sample.id)
                    found.setdefault(key, sample.model_copy(update={"path": self._path(row)}))
        return found

    def sources(self) -> Iterator[tuple[str, str]]:
        """(sample id, who made it) of every sample: model, and adapter after a plus sign; also those without image."""
        for row in self._stream(select(samples.c.id, samples.c.record).order_by(samples.c.row)):
            sample = Sample.model_validate_json(row.record)
            yield row.id, f"{sample.model}+{sample.adapter}" if sample.adapter else sample.model

    def feedback_json(self) -> Iterator[str]:
        """All feedback and tombstones as they are kept, in the order of arrival."""
        for row in self._stream(select(feedback.c.record).order_by(feedback.c.row)):
            yield row.record

    def feedback_count(self) -> int:
        """How many records of feedback there are, tombstones and what they took back included."""
        with self.reading() as connection:
            return connection.scalar(select(func.count()).select_from(feedback)) or 0

    def secret(self) -> str:
        """A random text that belongs to this store, made on first use: the key of annotators' pseudonyms."""
        with self.writing() as connection:
            rows.insert_new(connection, meta, [{"key": "secret", "value": secrets.token_hex(32)}])
            return connection.scalar(select(meta.c.value).where(meta.c.key == "secret")) or ""

    def _stream(self, query: Executable) -> Iterator[Any]:
        with self.reading() as connection:
            yield from connection.execution_options(yield_per=CHUNK).execute(query)

    def image_path(self, sample_id: str) -> Path:
        """The image file of a sample. InputError when the sample is unknown."""
        query = select(images.c.sha256, images.c.suffix).join(samples).where(samples.c.id == sample_id).limit(1)
        with self.reading() as connection:
            row = connection.execute(query).first()
        if row is None:
            raise InputError(f"no sample {sample_id} in {self.name}; visfeedback store stats shows what is there")
        return self.image_folder.path(row.sha256, row.suffix)

    def image_bytes(self, sample_id: str) -> bytes:
        """The bytes exactly as they were added."""
        return read(self.image_path(sample_id))

    def stats(self) -> dict[str, Any]:
        """Counts, choices, side bias and speed; see `visfeedback.store.stats`."""
        from visfeedback.store.stats import stats

        return stats(self)

    def verify(self) -> list[str]:
        """Problems, one line each; empty when all is well. See `visfeedback.store.verify`."""
        from visfeedback.store.verify import problems

        return list(problems(self))


def _load(sample: Sample, root: Path) -> Drawn:
    path = root / sample.path
    data = read(path)
    picture = inspect(data, path)
    if picture.id != sample.id:
        raise BadImage(
            f"{path} is not the image of its sample (pixels {picture.id[:12]}, the sample says {sample.id[:12]}); "
            "the file was changed, so make the samples again"
        )
    return Drawn(sample, data, picture)


@contextmanager
def _file_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(
            f"cannot write images to {folder}: {error.strerror}; free space or change permissions"
        ) from error
