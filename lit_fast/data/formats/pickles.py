"""Read the pickles of CIFAR's python version without running anything they name.

Unpickling a downloaded file with `pickle.load` runs whatever code the file asks for. Here every global a pickle may
name is one of a handful that NumPy arrays need, and even these are replaced by inert stand-ins that only remember what
they are given: no NumPy function sees the file's contents. Anything else is refused with an error.
"""

import io
import pickle
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from lit_fast.errors import DataError


class _Type:
    """Stands for `numpy.dtype(code, ...)`."""

    def __init__(self, code: Any = None, *_: Any) -> None:
        self.code = code.decode("latin-1") if isinstance(code, bytes) else code

    def __setstate__(self, state: Any) -> None:
        """Byte order and the like: of no meaning for single bytes, the only type accepted."""


class _Array:
    """Stands for a NumPy array: shape, element type and raw bytes as they lie in the file."""

    def __init__(self) -> None:
        self.shape: Any = None
        self.type: Any = None
        self.column_major: Any = None
        self.raw: Any = None

    def __setstate__(self, state: Any) -> None:
        _, self.shape, self.type, self.column_major, self.raw = state


def _reconstruct(*_: Any) -> _Array:
    """`numpy.core.multiarray._reconstruct`: an empty array whose state follows."""
    return _Array()


def _from_buffer(raw: Any, kind: Any, shape: Any, order: Any) -> _Array:
    """`numpy.core.numeric._frombuffer`, used by pickle protocol 5."""
    array = _Array()
    array.__setstate__((1, shape, kind, order == "F", raw))
    return array


def _encode(text: str, encoding: str) -> bytes:
    """`_codecs.encode` as protocol 2 uses it to spell bytes; other codecs are not needed."""
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"it encodes text as {encoding!r}" if isinstance(encoding, str) else "")
    return text.encode("latin-1")


_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy.core.numeric", "_frombuffer"): _from_buffer,
    ("numpy._core.numeric", "_frombuffer"): _from_buffer,
    ("numpy", "ndarray"): "numpy.ndarray",  # only passed on, never called
    ("numpy", "dtype"): _Type,
    ("_codecs", "encode"): _encode,
}


_Unpickler: Any = pickle._Unpickler


class _SafeUnpickler(_Unpickler):  # type: ignore[misc]
    """Python's own, in Python: the one in C reserves what lengths and positions in a file ask for, before it reads.

    Keys are plain values: a tuple that holds another twice, which holds another twice, and so on, takes a few hundred
    bytes, and its hash no end of time.
    """

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = dict(_Unpickler.dispatch)

    def load_bytearray8(self) -> None:
        size = int.from_bytes(self.read(8), "little")
        if size > self.size:
            raise pickle.UnpicklingError("it is cut short")
        self.append(bytearray(self.read(size)))

    def __init__(self, content: bytes) -> None:
        super().__init__(io.BytesIO(content), encoding="bytes")
        self.size = len(content)

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which no CIFAR file needs") from None


def _with_plain_keys(load: Callable[[Any], None], keys: slice) -> Callable[[Any], None]:
    """An opcode that fills a dictionary from the stack, ``keys`` of which become keys."""

    def checked(unpickler: Any) -> None:
        for key in unpickler.stack[keys]:
            if not isinstance(key, bytes | str | int):
                raise pickle.UnpicklingError(f"it has a key of type {type(key).__name__}")
        load(unpickler)

    return checked


_dispatch = _SafeUnpickler.dispatch
_KEYS = {pickle.SETITEM: slice(-2, -1), pickle.SETITEMS: slice(0, None, 2), pickle.DICT: slice(0, None, 2)}
for _code, _keys in _KEYS.items():
    _dispatch[_code[0]] = _with_plain_keys(_dispatch[_code[0]], _keys)
_dispatch[pickle.BYTEARRAY8[0]] = _SafeUnpickler.load_bytearray8
for _code in (pickle.FROZENSET, pickle.ADDITEMS, pickle.EMPTY_SET):  # would be hashed as well
    del _dispatch[_code[0]]


def read_pickle(content: bytes, path: str) -> Any:
    """Unpickle plain containers, numbers, bytes and arrays; arrays become stand-ins for `uint8_matrix`.

    Args:
        content: the whole file.
        path: the file as messages name it.

    Raises:
        DataError: if the pickle is malformed, truncated, or names anything else.
    """
    try:
        return _SafeUnpickler(content).load()
    except Exception as error:  # a malformed pickle can raise nearly anything
        raise DataError(
            f"{path}: refused as a CIFAR pickle of {len(content)} bytes: {error or type(error).__name__};"
            " the file is truncated, corrupt or not what it claims to be: download it again"
        ) from error


def uint8_matrix(value: Any, shape: tuple[int, int], path: str) -> Tensor:
    """An unpickled array as a tensor.

    Args:
        value: what stood in the pickle.
        shape: the rows and columns it must have.
        path: the file as messages name it.

    Returns:
        uint8 tensor of that shape.

    Raises:
        DataError: if it is anything but a uint8 array of that shape.
    """
    if not isinstance(value, _Array):
        raise DataError(f"{path}: expected an array of uint8 {shape}, got {type(value).__name__}")
    code = value.type.code if isinstance(value.type, _Type) else value.type
    if code not in ("u1", "|u1") or value.shape != shape:
        kind = code[:20] if isinstance(code, str) else type(code).__name__
        sizes = value.shape if isinstance(value.shape, tuple) else ()
        plain = 0 < len(sizes) < 9 and all(isinstance(size, int) and abs(size) < 2**63 for size in sizes)
        shown = sizes if plain else "of a shape that is none"
        raise DataError(f"{path}: expected an array of uint8 {shape}, got {kind} {shown}")
    raw, size = value.raw, shape[0] * shape[1]
    if not isinstance(raw, bytes | bytearray) or len(raw) != size:
        got = len(raw) if isinstance(raw, bytes | bytearray) else type(raw).__name__
        raise DataError(f"{path}: expected {size} bytes of pixels, got {got}")
    flat = torch.frombuffer(bytearray(raw), dtype=torch.uint8)
    return flat.view(shape[1], shape[0]).t() if value.column_major else flat.view(shape)
