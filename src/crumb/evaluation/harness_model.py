"""A loaded model as lm-evaluation-harness asks for it.

In: a LanguageModel, the harness's requests. Out: log-probabilities of continuations, of whole
texts, and generated texts: from `score` and `generate`, so that they are the model's own.
A context that is too long loses its beginning, as with every model of the harness.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from crumb.errors import UsageError
from crumb.requests.generate_request import GenerateRequest, make_request
from crumb.requests.reading_request import ScoreRequest
from crumb.run.consumers import Score
from crumb.run.language_model import LanguageModel

AT_ONCE = 64
"""Texts that are scored together: between two of these groups progress is told."""

MOST_GENERATED = 256
"""Tokens of an answer where a task does not say."""

SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
"""Words of the harness that are ours too."""

Told = Callable[[int], None]
"""Told how many more requests have been answered."""


def harness_model(model: LanguageModel, told: Told) -> Any:
    """A model that simple_evaluate takes. Needs the package lm_eval."""
    from lm_eval.api.model import TemplateLM

    kind = type("CrumbModel", (HarnessModel, TemplateLM), {})
    return kind(model, told)


class HarnessModel:
    """What the harness asks; its own class is put beside this one where it is installed."""

    tokenizer_name = "crumb"

    def __init__(self, model: LanguageModel, told: Told) -> None:
        super().__init__()
        self._model, self._told = model, told
        self.max_length = model.engine.context_tokens

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text. Raises: UsageError."""
        ends = self._model.tokenizer.end_tokens
        if not ends:
            raise UsageError("this model has no token that ends a text", where="tasks")
        return min(ends)

    @property
    def prefix_token_id(self) -> int:
        """What a text without a context begins with."""
        begin = self._model.tokenizer.begin_token
        return self.eot_token_id if begin is None else begin

    def tok_encode(self, string: str, add_special_tokens: bool | None = None) -> list[int]:
        """Tokens of a text."""
        tokenizer = self._model.tokenizer
        if add_special_tokens is None:  # a chat template writes them out
            begin = tokenizer.begin_token
            written = None if begin is None else tokenizer.piece(begin)
            add_special_tokens = written is None or not string.startswith(written)
        return tokenizer.encode(string, special=add_special_tokens)

    def apply_chat_template(
        self, chat_history: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True
    ) -> str:
        """Messages as the model's template has them."""
        template = self._model.chat_template
        return template.render(chat_history, add_generation_prompt=add_generation_prompt)

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Of each continuation behind its context: its log-probability, and whether it is greedy.

        Shapes: requests (label, tokens of the context, tokens of the continuation).
        """
        del disable_tqdm
        pairs = [(context, continuation) for _, context, continuation in requests]
        results: list[tuple[float, bool]] = []
        for begin in range(0, len(pairs), AT_ONCE):
            group = pairs[begin : begin + AT_ONCE]
            texts = [((before + own)[-self.max_length :], len(own)) for before, own in group]
            for score, (_, continuation) in zip(self._scores(texts), group, strict=True):
                results.append(of_continuation(score, len(continuation)))
            self._told(len(group))
        return results

    def _scores(self, texts: Sequence[tuple[Sequence[int], int]]) -> list[Score]:
        """Scores of so many last tokens of texts, together.

        One text of each context goes first: the others find the context in the cache.
        """
        requests = [
            ScoreRequest(tuple(text), top=1, first=max(len(text) - count, 1))
            for text, count in texts
        ]
        contexts = {tuple(text[:-count]): place for place, (text, count) in enumerate(texts)}
        leading = set(contexts.values())
        scores: dict[int, Score] = {}
        for is_leading in (True, False):
            places = [place for place in range(len(texts)) if (place in leading) == is_leading]
            handles = [self._model.submit(requests[place], wait=True) for place in places]
            for place, handle in zip(places, handles, strict=True):
                scores[place] = handle.result()
        return [scores[place] for place in range(len(texts))]

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[float]:
        """Log-probability of whole texts, in windows of the context."""
        from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

        del disable_tqdm
        totals: list[float] = []
        for (text,) in (each.args for each in requests):
            windows = get_rolling_token_windows(
                token_list=self.tok_encode(text, add_special_tokens=False),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length - 1,
                context_len=1,
            )
            pairs = map(make_disjoint_window, windows)
            asked = [(None, list(before), list(own)) for before, own in pairs]
            totals.append(sum((each[0] for each in self._loglikelihood_tokens(asked)), 0.0))
        return totals

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Answers, each up to one of its ends."""
        del disable_tqdm
        asked = [self._generation(*each.args) for each in requests]
        texts: list[str] = []
        for begin in range(0, len(asked), AT_ONCE):
            group = self._model.run(asked[begin : begin + AT_ONCE])
            failed = next((each.error for each in group if each.error is not None), None)
            if failed is not None:
                raise failed
            texts += [each.text for each in group]
            self._told(len(group))
        return texts

    def _generation(self, context: str, settings: Mapping[str, Any]) -> GenerateRequest:
        """The request of one answer."""
        from lm_eval.models.utils import normalize_gen_kwargs

        normal = normalize_gen_kwargs(dict(settings), MOST_GENERATED)
        most = min(normal["max_gen_toks"], self.max_length - 1)
        options: dict[str, Any] = {name: normal[name] for name in SAMPLING if name in normal}
        tokens = self.tok_encode(context)[-(self.max_length - most) :]
        stop = tuple(text for text in normal["until"] if text)
        return make_request(tokens, max_tokens=most, stop=stop, **options)


def of_continuation(score: Score, length: int) -> tuple[float, bool]:
    """A text's last tokens: their log-probability, and whether each was the most likely one."""
    own = score.tokens[len(score.tokens) - length :]
    measured = [(each.logprob, each.top[0].logprob) for each in own if each.logprob is not None]
    total = sum(logprob for logprob, _ in measured)
    return total, all(logprob == best for logprob, best in measured)
