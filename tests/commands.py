"""What commands leave behind."""

from __future__ import annotations


def failed(result: tuple[int, str, str]) -> str:
    code, out, err = result
    assert code == 2
    assert out == ""
    assert err.splitlines()[0].startswith("error: ")
    assert err.splitlines()[-1].startswith("help: ")
    assert "Traceback" not in err
    return err
