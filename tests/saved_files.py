"""Look into files of agents and networks, and write changed ones with the checksums that belong to them."""

import csv
import json
import zipfile

from safetensors.torch import load, save

from cet_rl.runs import archive

TIMES = ("time/fps", "time/time_elapsed")


def parts(file, what="network"):
    """Return the JSON data and the tensors of the state in a file."""
    tensors = {}
    return archive.encode(archive.read(file, what=what), tensors), tensors


def members(file):
    """Return {name: (JSON data, tensors)} of the members of a file."""
    with zipfile.ZipFile(file) as opened:
        names = [name.removesuffix(".json") for name in opened.namelist() if name.endswith(".json")]
        return {n: (json.loads(opened.read(f"{n}.json")), load(opened.read(f"{n}.safetensors"))) for n in names}


def write_members(file, found):
    """Write what `members` returned."""
    with zipfile.ZipFile(file, "w") as opened:
        for name, (data, tensors) in found.items():
            opened.writestr(f"{name}.json", json.dumps(data))
            opened.writestr(f"{name}.safetensors", save(tensors))


def summary(folder):
    """Return the data of a run folder's summary.json."""
    return json.loads((folder / "summary.json").read_text())


def rows(folder):
    """Return the rows of a run folder's metrics.csv without what depends on time."""
    with open(folder / "metrics.csv", newline="") as stream:
        return [{key: value for key, value in row.items() if key not in TIMES} for row in csv.DictReader(stream)]


def files(folder):
    """Return the contents of all files in a folder, by path."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
