"""Names on the wire: vllm_backend's tensors, and ours. config.pbtxt declares the same."""

TEXT_INPUT = "text_input"
MESSAGES = "messages"
INPUT_IDS = "input_ids"
STREAM = "stream"
SAMPLING_PARAMETERS = "sampling_parameters"
EXCLUDE_INPUT = "exclude_input_in_output"

TEXT_OUTPUT = "text_output"
FINISH_REASON = "finish_reason"
CUMULATIVE_LOGPROB = "cumulative_logprob"
LOGPROBS = "logprobs"
NUM_INPUT_TOKENS = "num_input_tokens"
NUM_OUTPUT_TOKENS = "num_output_tokens"
TOKEN_IDS = "token_ids"
PROMPT_LOGPROBS = "prompt_logprobs"
CACHED_TOKENS = "cached_tokens"
COST = "cost"

# Outputs that are sent only when the input of this name is true.
RETURN_FLAGS = {
    FINISH_REASON: "return_finish_reason",
    CUMULATIVE_LOGPROB: "return_cumulative_logprob",
    LOGPROBS: "return_logprobs",
    NUM_INPUT_TOKENS: "return_num_input_tokens",
    NUM_OUTPUT_TOKENS: "return_num_output_tokens",
    TOKEN_IDS: "return_token_ids",
    PROMPT_LOGPROBS: "return_prompt_logprobs",
    CACHED_TOKENS: "return_cached_tokens",
    COST: "return_cost",
}

INPUTS = (
    TEXT_INPUT, MESSAGES, INPUT_IDS, STREAM, SAMPLING_PARAMETERS, EXCLUDE_INPUT,
    *RETURN_FLAGS.values(),
)  # fmt: skip

# vllm_backend's words, which its tests compare to the letter.
NO_PROMPT_IN_STREAM = (
    "Error generating stream: When streaming, `exclude_input_in_output` = False is not allowed."
)
