"""Celery's signatures, chains and groups, sent as invocations, chains and groups of `lambda_tasks.flows`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

from lambda_tasks.contrib.celery.calls import CallOptions, refuse_options, sender
from lambda_tasks.contrib.celery.parameters import Parameters
from lambda_tasks.contrib.celery.results import AsyncResult, ChainResult, GroupResult
from lambda_tasks.decorators import LambdaTaskWrapper
from lambda_tasks.definition.hints import NAMES, PAGE, for_attribute
from lambda_tasks.definition.steps import RESULT
from lambda_tasks.flows import works

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from lambda_tasks.flows.works import TaskInvocation

R_co = TypeVar("R_co", covariant=True)
S = TypeVar("S")


class _Sendable:
    """What signatures, chains and groups have in common."""

    if not TYPE_CHECKING:  # otherwise type checkers would accept any name

        def __getattr__(self, name):
            hint = for_attribute(name) or f"See {PAGE}."
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}. {hint}", name=name, obj=self)


@dataclass
class Signature(_Sendable, Generic[R_co]):
    """A call of a task as a value. `task.s(…)` and `task.si(…)` return it."""

    task: LambdaTaskWrapper[Any, R_co]
    parameters: Parameters = field(repr=False)
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    #: Whether it does not take the result of the task before it.
    immutable: bool = False

    def clone(self, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> Signature[R_co]:
        """Return a copy with further arguments: `args` come first, unless the signature is immutable."""
        if self.immutable:
            return self
        return replace(self, args=(*args, *self.args), kwargs={**self.kwargs, **(kwargs or {})})

    def set(self, *, immutable: bool | None = None, **options: Unpack[CallOptions]) -> Signature[R_co]:
        """Add options of `apply_async()` to this signature, and return it."""
        self.options = {**self.options, **options}
        if immutable is not None:
            self.immutable = immutable
        return self

    def delay(self, *args: Any, **kwargs: Any) -> AsyncResult[R_co]:
        """Send the task on COMMIT, with further arguments."""
        return self.clone(args, kwargs).apply_async()

    def apply_async(
        self,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        **options: Unpack[CallOptions],
    ) -> AsyncResult[R_co]:
        """Send the task on COMMIT, with further arguments and options."""
        call = self.clone(args or (), kwargs)
        task, extra = call._sender(options)
        return AsyncResult(task.execute_on_commit(**self.parameters.named(call.args, call.kwargs), **extra))

    def invocation(self, *, takes_result: bool, **options: Unpack[CallOptions]) -> TaskInvocation[R_co]:
        """Return the invocation, whose first argument may be the result of the task before."""
        leading = (RESULT,) if takes_result and not self.immutable else ()
        task, extra = self._sender(options)
        return task.invocation(**self.parameters.named((*leading, *self.args), self.kwargs), **extra)

    def __call__(self, *args: Any, **kwargs: Any) -> R_co:
        """Call the function in this process, with further arguments."""
        call = self.clone(args, kwargs)
        return self.task(*call.args, **call.kwargs)

    def __or__(self, other: Signature[S] | Chain[S]) -> Chain[S]:
        return Chain((self,)) | other

    def _sender(self, options: Mapping[str, Any]) -> tuple[LambdaTaskWrapper[Any, R_co], dict[str, Any]]:
        every = {**self.options, **options}
        link = every.pop("link", None)
        task, extra = sender(self.task, every)
        return (task.using(on_success=_following(link)) if link else task), extra


@dataclass(frozen=True)
class Chain(_Sendable, Generic[R_co]):
    """Tasks that run one after the other. `chain()` and `|` return it."""

    signatures: tuple[Signature[Any], ...]

    def delay(self, *args: Any, **kwargs: Any) -> ChainResult[R_co]:
        """Send the chain on COMMIT, with further arguments for its first task."""
        return self.apply_async(args, kwargs)

    def apply_async(
        self,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        **options: Unpack[CallOptions],
    ) -> ChainResult[R_co]:
        """Send the chain on COMMIT. `countdown` and `eta` are those of its first task."""
        refuse_options("A chain", options)
        first, *later = self.signatures
        invocations = [
            first.clone(args or (), kwargs).invocation(takes_result=False, **options),
            *(each.invocation(takes_result=True) for each in later),
        ]
        return ChainResult(works.chain(*invocations).execute_on_commit())

    def __call__(self, *args: Any, **kwargs: Any) -> ChainResult[R_co]:
        return self.apply_async(args, kwargs)

    def __or__(self, other: Signature[S] | Chain[S]) -> Chain[S]:
        return Chain((*self.signatures, *_members((other,), "chain")))


@dataclass(frozen=True)
class Group(_Sendable):
    """Tasks that run in any order. `group()` returns it."""

    signatures: tuple[Signature[Any], ...]

    def delay(self, *args: Any, **kwargs: Any) -> GroupResult:
        """Send the group on COMMIT, with further arguments for each of its tasks."""
        return self.apply_async(args, kwargs)

    def apply_async(
        self,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        **options: Unpack[CallOptions],
    ) -> GroupResult:
        """Send the group on COMMIT. `countdown` and `eta` are those of each of its tasks."""
        refuse_options("A group", options)
        calls = (each.clone(args or (), kwargs) for each in self.signatures)
        members = [call.invocation(takes_result=False, **options) for call in calls]
        return GroupResult(works.group(members).execute_on_commit())

    def __call__(self, *args: Any, **kwargs: Any) -> GroupResult:
        return self.apply_async(args, kwargs)

    def __or__(self, other: object) -> Any:
        raise TypeError(
            f"A group must not be followed by a task. In place of Celery's chord, {NAMES['chord']} ({PAGE})."
        )


@overload
def chain(first: Iterable[Signature[Any]], /) -> Chain[Any]: ...
@overload
def chain(*signatures: Signature[Any] | Chain[Any]) -> Chain[Any]: ...
def chain(*signatures: Any) -> Chain[Any]:
    """Return a chain: each task is sent when the one before has succeeded, and takes its result as first argument.

    Raises TypeError for anything but signatures and chains, and for a chain without tasks.
    """
    members = _members(_listed(signatures), "chain")
    if not members:
        raise TypeError("chain() must have at least one signature, as in chain(task.s(1), …).")
    return Chain(members)


@overload
def group(signatures: Iterable[Signature[Any]], /) -> Group: ...
@overload
def group(*signatures: Signature[Any]) -> Group: ...
def group(*signatures: Any) -> Group:
    """Return a group: its tasks run in any order. Raises TypeError for anything but signatures of tasks."""
    given = _listed(signatures)
    if any(isinstance(each, Chain) for each in given):
        raise TypeError(
            f"group() must have signatures of tasks, not chains. Send each chain, or use on_success ({PAGE})."
        )
    return Group(_members(given, "group"))


def _listed(given: tuple[Any, ...]) -> tuple[Any, ...]:
    is_list = len(given) == 1 and isinstance(given[0], Iterable)
    return tuple(given[0]) if is_list else given


def _members(given: Iterable[object], function: str) -> tuple[Signature[Any], ...]:
    members: list[Signature[Any]] = []
    for each in given:
        if isinstance(each, Chain):
            members.extend(each.signatures)
        elif isinstance(each, Signature):
            members.append(each)
        else:
            raise TypeError(f"{function}() must have signatures of tasks, as in task.s(1), not {each!r} ({PAGE}).")
    return tuple(members)


def _following(link: object) -> list[TaskInvocation[Any]]:
    """Return the invocations in the option `link`, which take the result of the task."""
    links = link if isinstance(link, list | tuple) else [link]
    return [each.invocation(takes_result=True) for each in _members(links, "link")]
