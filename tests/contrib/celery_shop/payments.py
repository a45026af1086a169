"""Tasks with retries, as people write them."""

from celery import shared_task
from celery.exceptions import MaxRetriesExceededError
from celery.utils.log import get_task_logger

logger = get_task_logger(__name__)

#: What the gateway answers, the next one last.
answers = []
given_up = []


class GatewayDown(Exception):
    pass


def pay(order_id):
    answer = answers.pop() if answers else "paid"
    if isinstance(answer, Exception):
        raise answer
    return f"{answer} {order_id}"


@shared_task(bind=True, max_retries=2, default_retry_delay=30)
def charge(self, order_id, amount=0):
    try:
        logger.info("charging order %s", order_id)
        return {"order": pay(order_id), "amount": amount, "id": self.request.id, "retries": self.request.retries}
    except GatewayDown as exc:
        raise self.retry(exc=exc, countdown=2**self.request.retries)


@shared_task(bind=True, acks_late=True, ignore_result=True)
def refund(self, order_id):
    try:
        pay(order_id)
    except GatewayDown:
        try:
            self.retry(max_retries=1)
        except MaxRetriesExceededError:
            given_up.append(order_id)


@shared_task(autoretry_for=(GatewayDown,), retry_backoff=5, retry_kwargs={"max_retries": 1})
def settle(order_id):
    return pay(order_id)
