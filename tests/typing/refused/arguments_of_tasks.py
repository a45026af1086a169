"""Calls that a task would refuse at run time."""

from __future__ import annotations

from uuid import UUID

from lambda_tasks.decorators import LambdaTaskWrapper, lambda_task


@lambda_task
def plain(*, user_id: int, template: str = "welcome") -> str:
    return f"{user_id} {template}"


@lambda_task(queue="other")
def with_options(*, key: UUID) -> None: ...


def function(*, name: str) -> None: ...


made = LambdaTaskWrapper(function)

plain()  # error: call-arg
plain(user_id="1")  # error: arg-type
plain(user_id=1, templat="a")  # error: call-arg
plain(1)  # error: call-arg
plain(user_id=None)  # error: arg-type

plain.execute_on_commit()  # error: call-arg
plain.execute_on_commit(user_id="1")  # error: arg-type
plain.execute_on_commit(user_id=1, templat="a")  # error: call-arg
plain.execute_on_commit(1)  # error: call-arg
plain.execute_on_commit(user_id=1, template=None)  # error: arg-type

plain.serialize()  # error: call-arg
plain.serialize(user_id="1")  # error: arg-type
plain.serialize(user_id=1, templat="a")  # error: call-arg

plain.using(delay=1).execute_on_commit(user_id="1")  # error: arg-type
plain.using(queue="other")()  # error: call-arg

with_options.execute_on_commit(key="01931a6e-8d7b-7c10-9b1f-5b6a1f6c2d10")  # error: arg-type
with_options.execute_on_commit(kee=UUID(int=1))  # error: call-arg
with_options.serialize()  # error: call-arg

made.execute_on_commit(name=1)  # error: arg-type
made(nom="Ada")  # error: call-arg
