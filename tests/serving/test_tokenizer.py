"""The tokenizer of a checkpoint folder, and the chat template beside it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from octavo.errors import ConfigError, InvalidRequestError
from octavo.serving import wire
from octavo.serving.tokenizer import Tokenizer
from tests.serving.checkpoints import (
    BOS,
    EOS,
    byte_level_tokenizer,
    write_scripted_checkpoint,
)
from tests.serving.harness import GREEDY, Served, all_flags

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message.role == 'system' %}{{ raise_exception('no system messages') }}{% endif %}\n"
    "{{ message.role }}: {{ message.content | trim }}\n{% endfor %}"
    "{% if add_generation_prompt %}A{% endif %}"
)


def write_tokenizer(folder: Path, template: str | None = None, **config: object) -> Path:
    folder.mkdir(exist_ok=True)
    byte_level_tokenizer().save(str(folder / "tokenizer.json"))
    content = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, **config}
    if template is not None:
        content["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def test_tokenizer_adds_special_tokens_only_when_asked(tmp_path: Path) -> None:
    tokenizer = Tokenizer(write_tokenizer(tmp_path))
    plain = tokenizer.encode("ale", add_special_tokens=False)
    assert tokenizer.encode("ale") == [BOS, *plain]
    assert tokenizer.decode([BOS, *plain, EOS]) == "ale"
    assert tokenizer.decode([BOS, *plain], skip_special_tokens=False) == "<s>ale"
    assert tokenizer.special_token_ids == {0, BOS, EOS}


def test_tokenizer_decodes_single_tokens_as_they_are(tmp_path: Path) -> None:
    tokenizer = Tokenizer(write_tokenizer(tmp_path))
    ids = tokenizer.encode(" tale of ora", add_special_tokens=False)
    assert "".join(tokenizer.decode_single(token_id) for token_id in ids) == " tale of ora"
    assert tokenizer.decode_single(EOS) == "</s>"


def test_tokenizer_ignores_truncation_and_padding(tmp_path: Path) -> None:
    raw = byte_level_tokenizer()
    raw.enable_truncation(4)
    raw.enable_padding(length=10)
    raw.save(str(tmp_path / "tokenizer.json"))
    assert len(Tokenizer(tmp_path).encode("ABCDEFGH")) == 9


def test_tokenizer_knows_how_much_text_a_token_can_stand_for(tmp_path: Path) -> None:
    tokenizer = Tokenizer(write_tokenizer(tmp_path))
    texts = [tokenizer.decode([token_id]) for token_id in range(512)]
    assert tokenizer.longest_token_bytes >= max(len(text.encode()) for text in texts)


def test_tokenizer_names_the_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"tokenizer\.json is missing"):
        Tokenizer(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_tokenizer_names_the_broken_file(tmp_path: Path, name: str) -> None:
    (write_tokenizer(tmp_path) / name).write_text("{", encoding="utf-8")
    with pytest.raises(ConfigError, match=name):
        Tokenizer(tmp_path)


def test_tokenizer_renders_the_chat_template(tmp_path: Path) -> None:
    tokenizer = Tokenizer(write_tokenizer(tmp_path, TEMPLATE))
    messages = [{"role": "user", "content": " hi "}, {"role": "assistant", "content": "ho"}]
    assert tokenizer.render_chat(messages) == "<s>user: hi\nassistant: ho\nA"


def test_tokenizer_prefers_the_template_file(tmp_path: Path) -> None:
    folder = write_tokenizer(tmp_path, TEMPLATE)
    (folder / "chat_template.jinja").write_text("é {{ messages[0].content }}", encoding="utf-8")
    assert Tokenizer(folder).render_chat([{"role": "user", "content": "hi"}]) == "é hi"


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('not today') }}",
        "{{ messages[0].content + 1 }}",
        "{{ messages[0].nothing.more }}",
        "{{ messages.__class__.__mro__ }}",
        "{% set _ = messages.append(1) %}",
    ],
)
def test_tokenizer_says_that_the_template_refuses(tmp_path: Path, template: str) -> None:
    tokenizer = Tokenizer(write_tokenizer(tmp_path, template))
    with pytest.raises(InvalidRequestError, match="messages: got 1 messages; the chat template"):
        tokenizer.render_chat([{"role": "user", "content": "hi"}])


def serve_with_template(serve: Callable[..., Served], tmp_path: Path) -> Served:
    folder = write_scripted_checkpoint(tmp_path / "chat")
    write_tokenizer(folder, TEMPLATE)
    return serve(folder)


def test_server_answers_messages(serve: Callable[..., Served], tmp_path: Path) -> None:
    served = serve_with_template(serve, tmp_path)
    messages = json.dumps([{"role": "user", "content": "say B"}])
    asked = served.ask(None, messages=messages, sampling=GREEDY, **all_flags())
    prompt = "<s>user: say B\nA"
    assert asked.text == f"{prompt}BCDEFGHIJKLMNOPQ"
    # The template has the special token already.
    ids = byte_level_tokenizer().encode(prompt, add_special_tokens=False).ids
    assert ids.count(BOS) == 1
    assert asked.values(wire.NUM_INPUT_TOKENS) == [len(ids)]


def test_server_answers_messages_without_the_prompt_when_streaming(
    serve: Callable[..., Served], tmp_path: Path
) -> None:
    served = serve_with_template(serve, tmp_path)
    messages = json.dumps([{"role": "user", "content": "é \ud83d\ude00"}])
    asked = served.ask(None, messages=messages, stream=True, sampling=GREEDY)
    assert asked.text == "BCDEFGHIJKLMNOPQ"


def test_server_refuses_messages_that_the_template_refuses(
    serve: Callable[..., Served], tmp_path: Path
) -> None:
    served = serve_with_template(serve, tmp_path)
    asked = served.ask(None, messages='[{"role": "system", "content": "x"}]')
    assert asked.error is not None
    code, message = asked.error
    assert code == "INVALID_ARG" and "no system messages" in message
