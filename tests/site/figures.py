"""Draw the diagrams of the documentation into docs/images: `python -m tests.site.figures`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from hatch_build import ROOT
from tests.site.drawing import Drawing

FOLDER: Final = ROOT / "docs/images"


def way() -> Drawing:
    """Draw the parts of a setup and what travels between them, for the README."""
    drawing = Drawing(
        760,
        330,
        "The way of a task",
        "Your code commits its rows. The message then goes to SQS, and Lambda receives it. One transaction in your "
        "database contains the task's writes and its record with SUCCESS. If a worker dies, SQS delivers the message "
        "again.",
    )
    drawing.box(20, 60, 190, 80, ["Your code", "task.execute_on_commit()", "in a view, a form, a task"], "main")
    drawing.box(300, 60, 150, 80, ["Amazon SQS", "keeps the message"])
    drawing.box(560, 60, 180, 80, ["AWS Lambda", "claims the record,", "runs your function"], "main")
    drawing.box(20, 240, 720, 70, ["Your database", "your rows  ·  the task's writes  ·  its record"], "good")

    drawing.line((210, 100), (298, 100))
    drawing.text(254, 90, "message", anchor="middle", style="small")
    drawing.line((450, 100), (558, 100))
    drawing.text(504, 90, "in batches", anchor="middle", style="small")
    drawing.line((650, 60), (650, 28), (375, 28), (375, 58), style="return")
    drawing.text(512, 20, "a retry, or again if the worker dies", anchor="middle", style="small")

    drawing.line((115, 140), (115, 238))
    drawing.text(125, 180, "1. COMMIT of your rows,")
    drawing.text(125, 200, "then the message leaves")
    drawing.line((650, 140), (650, 238))
    drawing.text(640, 180, "2. one transaction: the task's", anchor="end")
    drawing.text(640, 200, "writes and SUCCESS", anchor="end")
    return drawing


def sequence() -> Drawing:
    """Draw a task from its call to its acknowledgement, with the moments at which a process may die."""
    drawing = Drawing(
        760,
        700,
        "A task from the call to the acknowledgement",
        "Your code writes and enqueues in a transaction. After the COMMIT it sends the message to SQS, which delivers "
        "it to a Lambda worker. The worker inserts the record as RUNNING, runs the function and writes SUCCESS in one "
        "transaction, and acknowledges the message. Numbers mark the moments at which a process may die.",
    )
    code, database, queue, worker = 95, 300, 490, 665
    for x, name, what in (
        (code, "Your code", "web process"),
        (database, "Database", "yours"),
        (queue, "SQS", "queue"),
        (worker, "Lambda", "worker"),
    ):
        drawing.box(x - 70, 16, 140, 50, [name, what], "good" if x == database else "main" if x != queue else "plain")
        drawing.line((x, 66), (x, 684), style="life", head=False)

    def step(y: float, start: float, end: float, text: str, detail: str = "") -> None:
        drawing.line((start, y), (end, y))
        middle = (start + end) / 2
        drawing.text(middle, y - 7, text, anchor="middle", style="over")
        if detail:
            drawing.text(middle, y + 15, detail, anchor="middle", style="small over")

    step(110, code, database, "BEGIN, your writes")
    drawing.box(20, 130, 190, 46, ["execute_on_commit()", "checks, creates the id"])
    step(210, code, database, "COMMIT", "outbox: with the message")
    drawing.mark(code, 248, 1)
    step(286, code, queue, "the message")
    step(330, queue, worker, "delivery")
    drawing.mark(worker, 358, 2)
    step(400, worker, database, "claim: INSERT the record", "RUNNING, with a lease")
    drawing.box(580, 430, 170, 46, ["your function", "within its time limits"], "main")
    step(500, worker, database, "BEGIN, the task's writes")
    drawing.mark(worker, 528, 3)
    step(568, worker, database, "SUCCESS, COMMIT", "only if the claim is still its own")
    drawing.mark(worker, 604, 4)
    step(648, worker, queue, "acknowledged", "SQS deletes it")
    return drawing


def states() -> Drawing:
    """Draw the states of an invocation."""
    drawing = Drawing(
        900,
        600,
        "The states of an invocation",
        "Pending becomes Queued at the COMMIT, or Kept with the outbox. A relay holds a Kept row until SQS accepts it: "
        "then the message is Queued. A claim makes it Running, which ends as Succeeded, Failed or Retrying. A Running "
        "invocation may also wait for its lock, be given back or be abandoned: the next delivery takes it over.",
    )
    _draw_sending(drawing)
    drawing.box(340, 160, 200, 60, ["Running", "claim set, lease ahead"], "main")
    drawing.line((440, 84), (440, 158))
    drawing.text(450, 126, "claim")

    for y, name, why, kind in (
        (76, "Succeeded", "returned, or ignored error", "good"),
        (164, "Failed", "error, limit, expired", "bad"),
        (252, "Retrying", "its retry is Queued or Kept", "wait"),
    ):
        drawing.box(660, y, 220, 52, [name, why], kind)
        drawing.line((540, 190), (600, 190), (600, y + 26), (658, y + 26))

    for x, enters, level, name, why in (
        (285, 352, 400, "Waiting", "for its lock"),
        (435, 405, 380, "Given back", "lost its database"),
        (585, 450, 360, "Abandoned", "lease has ended"),
        (750, 500, 340, "Offered", "reap() sent it"),
    ):
        drawing.box(x, 450, 135, 56, [name, why], "wait")
        middle = x + 67
        # A worker brings an invocation into these states, except for Offered.
        drawing.line((middle, 448), (middle, level), (enters, level), (enters, 222), both=name != "Offered")
    for number, words in enumerate(("takeover", "by the next", "delivery")):
        drawing.text(342, 290 + number * 16, words, anchor="end", style="small")
    drawing.line((502, 506), (502, 536), (817, 536), (817, 508))
    drawing.line((652, 506), (652, 536), style="line", head=False)
    drawing.text(662, 528, "reap()", style="small")
    notes = (
        "reap() ends an invocation as Failed if it must not run again. A cancelled invocation is Failed.",
        "The cleanup deletes the records of ended invocations.",
    )
    for number, note in enumerate(notes):
        drawing.text(450, 566 + number * 18, note, anchor="middle", style="small")
    return drawing


def _draw_sending(drawing: Drawing) -> None:
    drawing.box(40, 30, 150, 54, ["Pending", "transaction is open"])
    drawing.box(365, 30, 150, 54, ["Queued", "in SQS"], "main")
    drawing.line((190, 50), (363, 50))
    drawing.text(276, 43, "COMMIT", anchor="middle")
    drawing.line((115, 84), (115, 168))
    drawing.text(125, 118, "COMMIT,", style="small")
    drawing.text(125, 134, "with the outbox", style="small")
    drawing.box(40, 170, 150, 54, ["Kept", "a row of the outbox"], "wait")
    drawing.line((75, 224), (75, 308))
    drawing.text(65, 270, "due", anchor="end", style="small")
    drawing.line((150, 310), (150, 226))
    drawing.text(160, 264, "SQS fails,", style="small")
    drawing.text(160, 280, "relay dies", style="small")
    drawing.box(40, 310, 150, 54, ["Held", "a relay sends it"], "main")
    drawing.line((190, 337), (245, 337), (245, 68), (363, 68))
    drawing.text(255, 196, "accepted", style="small")
    drawing.line((115, 364), (115, 448))
    drawing.text(125, 404, "rejected", style="small")
    drawing.text(125, 420, "for good", style="small")
    drawing.box(40, 450, 150, 56, ["Dead", "until send_now()"], "bad")
    drawing.line((40, 478), (20, 478), (20, 197), (38, 197))


FIGURES: Final[dict[str, Callable[[], Drawing]]] = {"way": way, "sequence": sequence, "states": states}


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name, draw in FIGURES.items():
        path = FOLDER / f"{name}.svg"
        path.write_text(str(draw()))
        print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
