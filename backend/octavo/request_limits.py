"""What a request must keep to, so that it can run on this engine at all."""

from dataclasses import dataclass

from octavo.errors import InvalidRequestError
from octavo.execution.sampler import ALL_FORBIDDEN
from octavo.generation import GenerationRequest
from octavo.sampling_params import SamplingParams


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """Those of the model and of the engine's settings."""

    max_model_len: int
    vocab_size: int
    max_num_seqs: int
    eos_token_ids: tuple[int, ...]

    def check(self, request: GenerationRequest) -> None:
        """Raises InvalidRequestError if the request can never run."""
        prompt, params = request.prompt_token_ids, request.params
        if not prompt:
            raise InvalidRequestError("prompt", "0 tokens", "at least 1 token is needed")
        if len(prompt) >= self.max_model_len:
            raise InvalidRequestError(
                "prompt", f"{len(prompt)} tokens",
                f"at most {self.max_model_len - 1}: the context is {self.max_model_len} tokens",
            )  # fmt: skip
        if len(prompt) + params.max_tokens > self.max_model_len:
            raise InvalidRequestError(
                "max_tokens", params.max_tokens,
                f"at most {self.max_model_len - len(prompt)}: the context is "
                f"{self.max_model_len} tokens and the prompt has {len(prompt)}",
            )  # fmt: skip
        if params.n > self.max_num_seqs:
            raise InvalidRequestError("n", params.n, f"at most max_num_seqs = {self.max_num_seqs}")
        for field_name, ids in (
            ("input_ids", prompt),
            ("stop_token_ids", params.stop_token_ids),
            ("allowed_token_ids", params.allowed_token_ids or ()),
            ("logit_bias", params.logit_bias),
        ):
            outside = [token_id for token_id in ids if not 0 <= token_id < self.vocab_size]
            if outside:
                limit = f"token ids are 0 to {self.vocab_size - 1}"
                raise InvalidRequestError(field_name, outside[0], limit)
        if params.allowed_token_ids is not None:
            never = {word[0] for word in request.bad_words if len(word) == 1}
            if params.min_tokens > 0:
                never |= self.stop_token_ids(params)
            if never.issuperset(params.allowed_token_ids):
                raise InvalidRequestError(
                    "allowed_token_ids", list(params.allowed_token_ids), ALL_FORBIDDEN
                )

    def stop_token_ids(self, params: SamplingParams) -> frozenset[int]:
        eos = () if params.ignore_eos else self.eos_token_ids
        return frozenset((*eos, *params.stop_token_ids))
