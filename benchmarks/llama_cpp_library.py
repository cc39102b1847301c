"""What llama_cpp_peer.py calls of llama.cpp: the package llama-cpp-python, or ik-llama-cpp-python.

In: an environment that has one of the two. Out: `api`, the C functions and structs, under the names
of llama.h, and here whatever the two libraries have in different ways.
ik_llama.cpp is a fork from 2024 with kernels of its own; it has OpenMP's threads, so no pool is
made for it, and its matrices are repacked when they are loaded only where that is asked for.
"""

from __future__ import annotations

import ctypes
from importlib.metadata import version
from typing import Any

try:
    import llama_cpp as api

    LIBRARY: Any = api.llama_cpp._lib
    PACKAGE = "llama-cpp-python"
except ImportError:
    from ik_llama_cpp import _ctypes_api as api

    LIBRARY = api._lib
    PACKAGE = "ik-llama-cpp-python"

IS_FORK = PACKAGE.startswith("ik")
CPUMASK_BYTES = 512
LOG_CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)


class ThreadpoolSettings(ctypes.Structure):
    """struct ggml_threadpool_params; llama-cpp-python does not bind it."""

    _fields_ = (
        ("cpumask", ctypes.c_bool * CPUMASK_BYTES),
        ("n_threads", ctypes.c_int),
        ("priority", ctypes.c_int),
        ("poll", ctypes.c_uint32),
        ("strict_cpu", ctypes.c_bool),
        ("paused", ctypes.c_bool),
    )


def make_threadpool(threads: int) -> ctypes.c_void_p:
    """Threads that outlive a decode, as llama.cpp's own programs make them.

    Without it a build that has no OpenMP starts its threads anew for every token.
    """
    settings = ThreadpoolSettings()
    LIBRARY.ggml_threadpool_params_init(ctypes.byref(settings), ctypes.c_int(threads))
    LIBRARY.ggml_threadpool_new.restype = ctypes.c_void_p
    return ctypes.c_void_p(LIBRARY.ggml_threadpool_new(ctypes.byref(settings)))


def attach_threads(context: int, pools: list[ctypes.c_void_p]) -> None:
    """Give a context the threads of two pools, if there are pools."""
    if pools:
        LIBRARY.llama_attach_threadpool(ctypes.c_void_p(context), *pools)


def make_threads(*counts: int) -> list[ctypes.c_void_p]:
    """One pool for each count; none for the fork, whose OpenMP keeps its threads."""
    return [] if IS_FORK else [make_threadpool(count) for count in counts]


def model_settings(repacked: bool) -> Any:
    """llama_model_params. Raises: ValueError where the library decides alone what to repack."""
    settings = api.llama_model_default_params()
    if IS_FORK:
        settings.repack_tensors = repacked
        settings.use_mmap = not repacked
    elif repacked:
        raise ValueError("only ik_llama.cpp is asked to repack; llama.cpp decides alone")
    return settings


def clear_cache(context: int) -> None:
    """Forget all positions of all sequences."""
    if IS_FORK:
        api.llama_kv_cache_clear(context)
    else:
        api.llama_memory_clear(api.llama_get_memory(context), False)


def synchronize(context: int) -> None:
    """Wait until what was begun is done."""
    LIBRARY.llama_synchronize(ctypes.c_void_p(context))


def set_log(callback: Any) -> None:
    """Lines of the library go to a LOG_CALLBACK."""
    LIBRARY.llama_log_set(callback, None)


def describe_library(model: int) -> dict[str, Any]:
    """The package, what the library was built for, and the sizes of a model."""
    LIBRARY.llama_print_system_info.restype = ctypes.c_char_p
    LIBRARY.llama_model_size.restype = LIBRARY.llama_model_n_params.restype = ctypes.c_uint64
    return {
        "package": f"{PACKAGE} {version(PACKAGE)}",
        "system_info": LIBRARY.llama_print_system_info().decode(),
        "bytes": LIBRARY.llama_model_size(ctypes.c_void_p(model)),
        "parameters": LIBRARY.llama_model_n_params(ctypes.c_void_p(model)),
    }
