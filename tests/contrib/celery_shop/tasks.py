"""Tasks that are chained, delayed and called with positional arguments, as people write them."""

from celery import chain, group, shared_task
from django.db import transaction

from .payments import charge  # noqa: F401, as people collect their tasks

from tests.app.models import Effect


def note(text):
    Effect.objects.create(name=text)


@shared_task
def add(x, y):
    return x + y


@shared_task(name="shop.mail", queue="other", time_limit=60, soft_time_limit=50, expires=3600)
def mail(user_id, subject="Welcome", tags: list = None):
    note(f"{subject} {user_id} {tags}")


@shared_task(bind=True)
def export(self, total):
    for number in range(total):
        self.update_state(state="PROGRESS", meta={"current": number + 1, "total": total})
    return total


@shared_task(bind=True)
def count_down(self, number):
    note(f"{self.name.rpartition('.')[2]} {number}")
    if number:
        self.delay(number - 1)


def register(user_id):
    """A view: the mail leaves when the user is committed."""
    with transaction.atomic():
        note(f"user {user_id}")
        mail.delay(user_id, tags=["new"])
        mail.apply_async((user_id,), {"subject": "Reminder"}, countdown=600)
        mail.apply_async(args=[user_id, "Offer"], queue="default", expires=60)


def compute():
    piped = (add.s(1, 2) | add.s(10) | add.si(100, 200)).delay()
    chained = chain(add.s(4, 4), add.s(8), add.s(16)).apply_async()
    grouped = group(add.s(n, n) for n in range(3))()
    return piped, chained, grouped
