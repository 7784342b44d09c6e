"""What is kept, and what a crash may leave."""

from pathlib import Path

from octavo.playbook.store import FILE_NAME, Store, key_of


def test_what_was_put_is_there_again(tmp_path: Path) -> None:
    store = Store(tmp_path)
    key = key_of("sample", {"users": 4})
    assert store.get(key) is None
    store.put(key, {"tokens": 7})
    assert store.get(key) == Store(tmp_path).get(key) == {"tokens": 7}


def test_other_inputs_are_another_result() -> None:
    keys = {
        key_of("sample", {"users": 4, "stage": "paged"}),
        key_of("sample", {"users": 8, "stage": "paged"}),
        key_of("ended", {"users": 4, "stage": "paged"}),
    }
    assert len(keys) == 3
    assert key_of("sample", {"stage": "paged", "users": 4}) in keys


def test_a_line_cut_short_costs_no_other(tmp_path: Path) -> None:
    Store(tmp_path).put("a", 1)
    file = tmp_path / FILE_NAME
    file.write_bytes(file.read_bytes() + b'{"key": "b", "val')
    store = Store(tmp_path)
    assert (store.get("a"), store.get("b")) == (1, None)
    store.put("c", 3)
    again = Store(tmp_path)
    assert (again.get("a"), again.get("b"), again.get("c")) == (1, None, 3)


def test_lines_that_are_no_results_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_text('[]\n{"value": 1}\nnull\n{"key": "a", "value": 2}\n')
    assert Store(tmp_path).get("a") == 2
