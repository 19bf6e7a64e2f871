"""Data sets from the Hugging Face hub, in bounded time and without a word."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from cet_rl.vision.parquet import Table, check_table, find_columns, needs_extra, reason_of

CONNECT_SECONDS = 5.0
"""How long to wait for the hub's first answer."""

NO_NETWORK_HINT = "without a network, give a folder of Parquet files: --data-dir DIR"


def read_hub(name: str, repository: str, splits: Sequence[str]) -> dict[str, Table]:
    """The checked columns of each split from the Hugging Face hub, or from its cache if it cannot be reached."""
    try:
        import datasets
    except ImportError:
        raise needs_extra(name) from None
    offline = datasets.config.HF_HUB_OFFLINE
    answers = not offline and hub_answers()
    try:
        with quiet():
            # By itself the library would ask for half a minute and longer before it turns to its cache.
            datasets.config.HF_HUB_OFFLINE = not answers
            loaded = datasets.load_dataset(repository)
    except Exception as error:  # of datasets, huggingface_hub, httpx, fsspec and pyarrow
        reason = reason_of(error)
        if not answers and isinstance(error, ConnectionError):
            why = "HF_HUB_OFFLINE is set" if offline else "it does not answer"
            reason = f"{why}, and its cache on this computer has no copy"
        raise OSError(f"cannot fetch {name} from the Hugging Face hub: {reason}; {NO_NETWORK_HINT}") from error
    finally:
        datasets.config.HF_HUB_OFFLINE = offline
    tables = {}
    for split in splits:
        where = f"{repository} ({split})"
        if split not in loaded:
            raise ValueError(f"{where} does not exist on the hub: there are {', '.join(loaded)}")
        table = loaded[split].data.table
        columns = find_columns(table.schema, where)
        tables[split] = check_table(table.select(columns).rename_columns(["image", "label"]), where)
    return tables


def hub_answers() -> bool:
    """Whether anything at all comes back from the hub, in bounded time."""
    from huggingface_hub import constants, get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=CONNECT_SECONDS)
    except Exception:  # the HTTP library differs between versions
        return False
    return True


@contextmanager
def quiet() -> Iterator[None]:
    """Keep progress bars, log lines and warnings of the hub's libraries off the screen, then restore them."""
    from datasets import utils as datasets_bars
    from huggingface_hub import utils as hub_bars

    loggers = [logging.getLogger(each) for each in ("datasets", "huggingface_hub")]
    levels = [each.level for each in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # The two modules have functions of the same names; bars that are off already stay off.
        bars = [each for each in (datasets_bars, hub_bars) if not each.are_progress_bars_disabled()]
        for module in bars:
            module.disable_progress_bars()
        for each in loggers:
            each.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for module in bars:
                module.enable_progress_bars()
            for each, level in zip(loggers, levels, strict=True):
                each.setLevel(level)
