"""The table of commands: what each is called, where it lies, what `crumb --help` says of it.

A command's module is imported when the command is asked for, and no other: `crumb --version` needs
a fifth of the time that all of them take. A test holds each sentence to its function's docstring.
"""

from __future__ import annotations

COMMANDS: tuple[tuple[str, str, str], ...] = (
    (
        "quantize",
        "quantize:quantize",
        "Quantize a checkpoint; a run that was stopped continues when the command is repeated.",
    ),
    (
        "eval",
        "eval:evaluate",
        "Measure a model, quantized or not; with --reference also how far it moved.",
    ),
    (
        "fit",
        "fit:fit",
        "Show what of a model fits into memory; of a model on the hub no weight is downloaded.",
    ),
    (
        "ls",
        "ls:ls",
        "List the models here: of some folders, of the hub's cache, and the one that comes with "
        "crumb.",
    ),
    (
        "pull",
        "pull:pull",
        "Fetch a model from the hub; a download that was cut off goes on where it ended.",
    ),
    ("generate", "generate:generate", "Continue a text; it streams to stdout as it comes."),
    ("chat", "chat:chat", "Talk with a model; /help lists what else can be typed."),
    (
        "serve",
        "serve:serve_app",
        "Answer over HTTP as OpenAI, Anthropic and Ollama do, with a chat page.",
    ),
    (
        "bench",
        "bench:bench",
        "Measure how fast a model reads and writes, as shares of what the machine could do.",
    ),
    (
        "export",
        "export:export",
        "Write a model in another container, exactly where its formats allow.",
    ),
    (
        "delta",
        "delta:delta",
        "Publish what quantization decided about a base, without its weights.",
    ),
    ("show", "show:show", "Show a model: family, sizes, formats, error of each tensor."),
    ("families", "families:families", "Show which families of models run."),
    ("formats", "formats:formats", "Show what a quantized number can be: formula, bits, bytes."),
    (
        "kernels",
        "kernels:kernels",
        "Show which instruction sets are here, which one runs and why, and its kernels.",
    ),
    (
        "demo",
        "demo:demo",
        "Quantize the embedded model to 4, 3 and 2 bits and show what each cost.",
    ),
)
"""Name, module and function, first sentence of its docstring."""
