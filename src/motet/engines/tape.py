"""A tensor computation written down once, operation by operation, and played back on other tensors.

Playing back costs what its kernels cost: no autograd, no modules, no Python of the model's own.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
VIEWS = frozenset(
    {
        aten.detach.default,
        aten.view.default,
        aten._unsafe_view.default,
        aten.expand.default,
        aten.alias.default,
    }
)


class Unlike(Exception):  # noqa: N818
    """Something cannot be done for several sites at once; the text says why."""


@dataclass(frozen=True)
class Slot:
    """Where a tensor of the computation stands while it is played back."""

    number: int


@dataclass
class Operation:
    """One kernel: arguments with slots in place of tensors; what it puts where."""

    call: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: Any
    mutates: bool = False

    def reads(self) -> set[int]:
        """The slots among its arguments."""
        return slots_in((self.args, self.kwargs))

    def writes(self) -> set[int]:
        """The slots of its results."""
        return slots_in(self.out)


@dataclass(frozen=True)
class Product:
    """A result that was left as the two factors [n, a, b] and [n, b, c] of a batched product."""

    left: Any
    right: Any


@dataclass
class Tape:
    """What was written down: inputs take the first slots, results are slots, products or None."""

    inputs: int
    operations: list[Operation]
    results: list[Any]
    shapes: dict[int, tuple[int, ...]] = field(repr=False)
    _steps: list[tuple[Any, ...]] = field(default_factory=list, repr=False)

    def __post_init__(self) -> None:
        self._shorten()
        self._plan()

    def __call__(self, inputs: Sequence[Tensor]) -> list[Any]:
        """Plays the computation back on these tensors; products come as pairs of tensors."""
        values: list[Any] = [*inputs, *[None] * (len(self.shapes) - len(inputs))]
        for call, args, slots, kwargs, out, operation, done in self._steps:
            if operation is None:
                given = list(args)
                for at, number in slots:
                    given[at] = values[number]
                values[out] = call(*given, **kwargs)
            else:
                found = call(*filled(args, values), **filled(kwargs, values))
                _put(operation.out, found, values)
            for number in done:
                values[number] = None
        return [filled(result, values) for result in self.results]

    def products(self) -> int:
        """Multiplications in its matrix products."""
        total = 0
        pairs = [op.args[:2] for op in self.operations if op.call is aten.bmm.default]
        pairs += [(item.left, item.right) for item in self.results if isinstance(item, Product)]
        for left, right in pairs:
            n, a, b = self._shape(left)
            total += n * a * b * self._shape(right)[-1]
        return total

    def _shape(self, value: Any) -> tuple[int, ...]:
        return self.shapes[value.number] if isinstance(value, Slot) else tuple(value.shape)

    def uses(self, name: str) -> bool:
        """Whether a kernel of this name is among its operations."""
        return any(op.call.overloadpacket.__name__ == name for op in self.operations)

    def leave_products(self, results: Sequence[int]) -> None:
        """Leaves results of these numbers unmultiplied where they are batched products.

        Who adds a product to a tensor can do so without the memory for it.
        """
        for number in results:
            slot = self.results[number]
            if not isinstance(slot, Slot) or self.results.count(slot) > 1:
                continue
            makers = [op for op in self.operations if slot.number in op.writes()]
            read = any(slot.number in op.reads() for op in self.operations)
            if len(makers) == 1 and makers[0].call is aten.bmm.default and not read:
                self.operations.remove(makers[0])
                self.results[number] = Product(*makers[0].args)
        self._plan()

    def _plan(self) -> None:
        """Works out after which operation each slot is of no use any more."""
        kept = slots_in(self.results)
        seen: set[int] = set()
        freed: list[tuple[int, ...]] = []
        for operation in reversed(self.operations):
            used = operation.reads() | operation.writes()
            freed.append(tuple(sorted(used - seen - kept)))
            seen |= used
        self._steps = [
            _prepared(operation, done)
            for operation, done in zip(self.operations, reversed(freed), strict=True)
        ]

    def _shorten(self) -> None:
        """Takes out what changes nothing, and makes transposed products products of transposes."""
        self._drop_copies()
        self._turn_products()
        self._drop_unread()

    def _drop_copies(self) -> None:
        mutated = {n for op in self.operations if op.mutates for n in op.writes()}
        same: dict[int, int] = {}
        kept: list[Operation] = []
        for op in self.operations:
            op.args, op.kwargs, op.out = (_renamed(x, same) for x in (op.args, op.kwargs, op.out))
            source = op.args[0] if op.args else None
            if isinstance(source, Slot) and isinstance(op.out, Slot) and not op.mutates:
                alike = self.shapes[source.number] == self.shapes[op.out.number]
                times_one = op.call is aten.mul.Scalar and op.args[1] == 1
                free = not {source.number, op.out.number} & mutated
                if alike and (op.call in VIEWS or (times_one and free)):
                    same[op.out.number] = source.number
                    continue
            kept.append(op)
        self.operations = kept
        self.results = [_renamed(result, same) for result in self.results]

    def _turn_products(self) -> None:
        makers = {op.out.number: op for op in self.operations if isinstance(op.out, Slot)}
        uses: dict[int, int] = {}
        for op in self.operations:
            for number in op.reads():
                uses[number] = uses.get(number, 0) + 1
        for number in slots_in(self.results):
            uses[number] = uses.get(number, 0) + 1
        turned: list[Operation] = []
        for op in self.operations:
            product = makers.get(op.args[0].number) if _turns(op) else None
            if (
                product is None
                or product.call is not aten.bmm.default
                or uses[op.args[0].number] > 1
            ):
                turned.append(op)
                continue
            left, right = (self._turned(x, makers, turned) for x in reversed(product.args))
            turned.append(Operation(aten.bmm.default, (left, right), {}, op.out))
        self.operations = turned

    def _turned(
        self, factor: Any, makers: Mapping[int, Operation], operations: list[Operation]
    ) -> Any:
        if not isinstance(factor, Slot):
            return factor.transpose(1, 2)
        maker = makers.get(factor.number)
        if maker is not None and _turns(maker):
            return maker.args[0]
        out = Slot(max(self.shapes) + 1)
        n, a, b = self.shapes[factor.number]
        self.shapes[out.number] = (n, b, a)
        operations.append(Operation(aten.transpose.int, (factor, 1, 2), {}, out))
        return out

    def _drop_unread(self) -> None:
        needed = slots_in(self.results)
        kept: list[Operation] = []
        for op in reversed(self.operations):
            if op.mutates or op.writes() & needed:
                needed |= op.reads()
                kept.append(op)
        self.operations = kept[::-1]


def _prepared(op: Operation, done: tuple[int, ...]) -> tuple[Any, ...]:
    """An operation as it is played back; nearly all have slots at the top of their arguments."""
    slots = tuple((at, arg.number) for at, arg in enumerate(op.args) if isinstance(arg, Slot))
    nested = [arg for arg in (*op.args, op.kwargs) if not isinstance(arg, Slot) and slots_in(arg)]
    if isinstance(op.out, Slot) and not nested:
        return op.call, op.args, slots, op.kwargs, op.out.number, None, done
    return op.call, op.args, slots, op.kwargs, None, op, done


def _turns(op: Operation) -> bool:
    """Whether this is a transposition of matrices [n, a, b]."""
    return (
        op.call is aten.transpose.int
        and isinstance(op.args[0], Slot)
        and sorted(dim % 3 for dim in op.args[1:]) == [1, 2]
    )


def slots_in(value: Any) -> set[int]:
    """The numbers of all slots in nested arguments."""
    if isinstance(value, Slot):
        return {value.number}
    if isinstance(value, Product):
        return slots_in((value.left, value.right))
    if isinstance(value, list | tuple):
        return set().union(*(slots_in(item) for item in value))
    if isinstance(value, dict):
        return slots_in(list(value.values()))
    return set()


def filled(value: Any, values: Sequence[Any]) -> Any:
    """Nested arguments with tensors in place of slots."""
    if isinstance(value, Slot):
        return values[value.number]
    if isinstance(value, tuple):
        return tuple([filled(item, values) for item in value])
    if isinstance(value, list):
        return [filled(item, values) for item in value]
    if isinstance(value, dict):
        return {key: filled(item, values) for key, item in value.items()} if value else value
    if isinstance(value, Product):
        return Product(filled(value.left, values), filled(value.right, values))
    return value


def _renamed(value: Any, same: Mapping[int, int]) -> Any:
    def new(item: Any) -> Any:
        if isinstance(item, Slot):
            return Slot(same.get(item.number, item.number))
        if isinstance(item, list | tuple):
            return type(item)([new(part) for part in item])
        if isinstance(item, dict):
            return {key: new(part) for key, part in item.items()}
        return item

    return new(value)


def _put(out: Any, found: Any, values: list[Any]) -> None:
    if isinstance(out, Slot):
        values[out.number] = found
    elif isinstance(out, list | tuple):
        for slot, item in zip(out, found, strict=True):
            _put(slot, item, values)


def record(
    function: Callable[[Sequence[Tensor]], Sequence[Tensor | None]],
    inputs: Sequence[Tensor],
    changing: Collection[int] = (),
) -> Tape:
    """Runs the function on these tensors and writes down what it does to them.

    changing: numbers of the inputs that it may change in place. What depends on no input is a
    constant of the tape. Raises Unlike where a value of theirs decides what is done.
    """
    recorder = _Recorder(inputs, changing)
    with recorder:
        found = function(inputs)
    results = [None if item is None else recorder.known(item) for item in found]
    shapes = {slot: tuple(tensor.shape) for slot, tensor in enumerate(recorder.tensors)}
    return Tape(len(inputs), recorder.operations, results, shapes)


class _Recorder(TorchDispatchMode):
    def __init__(self, inputs: Sequence[Tensor], changing: Collection[int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations: list[Operation] = []
        # Held until the end, so that no identity is given out twice.
        self.tensors: list[Tensor] = []
        self._numbers: dict[int, int] = {}
        self._storages: set[int] = set()
        for tensor in inputs:
            self._new(tensor)
        self._fixed = {
            tensor.untyped_storage()._cdata
            for number, tensor in enumerate(inputs)
            if number not in changing
        }

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # What torch wraps around a mode for its compiler imports it, for more than half a second.
        return False

    def _new(self, tensor: Tensor) -> Slot:
        self._numbers[id(tensor)] = len(self.tensors)
        self.tensors.append(tensor)
        self._storages.add(tensor.untyped_storage()._cdata)
        return Slot(len(self.tensors) - 1)

    def known(self, value: Any) -> Any:
        """Nested values with slots for the tensors of the computation."""
        if isinstance(value, Tensor):
            if id(value) in self._numbers:
                return Slot(self._numbers[id(value)])
            if value.untyped_storage()._cdata in self._storages:
                raise Unlike("a tensor of its step cannot be followed")
            return value
        if isinstance(value, list | tuple):
            return type(value)([self.known(item) for item in value])
        return value

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        seen_args = self.known(args)
        seen = {key: self.known(item) for key, item in kwargs.items()}
        found = func(*args, **kwargs)
        mutates = func._schema.is_mutable
        if not slots_in((seen_args, seen)):
            return found
        if not isinstance(found, Tensor | list | tuple) and not mutates:
            raise Unlike("its step looks at values and decides by them")
        if mutates and not self._own(func, args, kwargs):
            raise Unlike("its step changes a tensor in place that is not its own")
        self.operations.append(Operation(func, seen_args, seen, self._out(found), mutates))
        return found

    def _own(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
        """Whether what a kernel changes in place was made on the way, or may change."""
        changed = {tensor.untyped_storage()._cdata for tensor in _written(func, args, kwargs)}
        return changed <= self._storages and not changed & self._fixed

    def _out(self, found: Any) -> Any:
        if isinstance(found, Tensor):
            number = self._numbers.get(id(found))
            return self._new(found) if number is None else Slot(number)
        if isinstance(found, list | tuple):
            return [self._out(item) for item in found]
        return None


def _written(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """The arguments that a kernel changes in place."""
    changed: list[Any] = []
    for number, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[number] if number < len(args) else kwargs.get(argument.name)
            changed += value if isinstance(value, list | tuple) else [value]
    return [item for item in changed if isinstance(item, Tensor)]
