"""Tokenizers of Hugging Face folders: where the special tokens are named, and what a template may use."""

import dataclasses
import json
import signal
import threading
import time

import pytest
import trl_pairs

from jaxpref.data import tokenizer

PLACES = {
    "settings": {"tokenizer_config.json": {"bos_token": "<s>", "eos_token": {"content": "</s>"}}},
    "a map beside": {"special_tokens_map.json": {"bos_token": {"content": "<s>"}, "eos_token": "</s>"}},
    "the model's ids": {"config.json": {"bos_token_id": 1, "eos_token_id": 2}},
    "the settings before the others": {
        "config.json": {"bos_token_id": 3, "eos_token_id": 4},
        "tokenizer_config.json": {"bos_token": "<s>", "eos_token": "</s>"},
    },
}
USER = {"role": "user", "content": "hi"}


def write(folder, files):
    backend = trl_pairs.TOKENIZERS["gpt2"][0]()
    backend.enable_padding(length=100)
    backend.enable_truncation(3)
    backend.save(str(folder / "tokenizer.json"))
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    return tokenizer.from_folder(folder)


@pytest.mark.parametrize("place", PLACES)
def test_special_tokens_are_found_wherever_a_folder_names_them(tmp_path, place):
    made = write(tmp_path, PLACES[place])
    assert (made.bos, made.eos) == (1, 2)


def test_a_null_in_the_settings_is_no_token_whatever_the_model_says(tmp_path):
    made = write(tmp_path, {"config.json": {"bos_token_id": 1}, "tokenizer_config.json": {"bos_token": None}})
    assert made.bos is None


def test_padding_and_truncation_of_the_training_are_not_taken_over(tmp_path):
    made = write(tmp_path, PLACES["settings"])
    assert [len(ids) for ids in made.encode_batch(["abcdef", "abc"])] == [6, 3]


def template(source):
    backend = trl_pairs.TOKENIZERS["gpt2"][0]()
    return tokenizer.Tokenizer(
        backend=backend, bos=1, eos=2, chat_template=source, special=(("pad_token", "P"),)
    )


RENDERED = {
    "generation marks": ("{% generation %}{{ messages[0].content }}{% endgeneration %}!", "hi!"),
    "the date": ("{{ strftime_now('%d %b %Y') }}", "26 Jul 2024"),
    "special tokens": ("{{ bos_token }}{{ eos_token }}{{ pad_token }}{{ unk_token }}", "<s></s>P"),
    "tools": ("{{ tools | tojson(indent=None, sort_keys=True) }}", '[{"a": 1, "b": 2}]'),
    "variables": ("{{ thinking }}{{ documents is none }}", "TrueTrue"),
    "reasoning": ("{{ messages[1].reasoning_content }}{{ messages[1].thinking }}", "whywhy"),
}


@pytest.mark.parametrize("name", RENDERED)
def test_templates_see_what_hugging_face_shows_them(name):
    source, expected = RENDERED[name]
    messages = [USER, {"role": "assistant", "content": "a", "reasoning": "why"}]
    text = template(source).render(
        messages, generation_prompt=False, tools=[{"b": 2, "a": 1}], variables={"thinking": True}
    )
    assert text == expected


def test_templates_end_in_time_in_any_thread(monkeypatch):
    monkeypatch.setattr(tokenizer, "RENDER_SECONDS", 0.1)
    endless = template("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}")
    errors = []

    def render():
        with pytest.raises(tokenizer.TemplateError, match=r"end within 0\.1 s"):
            endless.render([USER], generation_prompt=False)
        errors.append(True)

    render()
    thread = threading.Thread(target=render)
    thread.start()
    thread.join(20)
    assert errors == [True, True]


def test_a_callers_own_alarm_still_rings(monkeypatch):
    rung = []
    before = signal.signal(signal.SIGALRM, lambda *_: rung.append(True))
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    template("{{ messages[0].content }}").render([USER], generation_prompt=False)
    time.sleep(0.2)
    signal.signal(signal.SIGALRM, before)
    assert rung


def test_another_template_is_another_hash():
    one = template("a")
    assert one.sha256 == template("a").sha256 != dataclasses.replace(one, chat_template="b").sha256
