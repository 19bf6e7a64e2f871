"""usage: cet-rl completion

Print a script for bash and zsh that completes commands, options, tasks, traces and the like with TAB. Once:

  cet-rl completion > ~/.cet-rl-completion
  echo 'source ~/.cet-rl-completion' >> ~/.bashrc

In zsh the second line is for ~/.zshrc, after: autoload -Uz compinit bashcompinit && compinit && bashcompinit
"""

from __future__ import annotations

import contextlib
import io
import os
import re
from collections.abc import Iterable, Sequence

from cet_rl.cli import COMMANDS, main
from cet_rl.cli.listing import LISTS

SCRIPT = """_cet_rl() {{
  local word="${{COMP_WORDS[COMP_CWORD]}}" words=""
  case "${{COMP_WORDS[1]}} ${{COMP_WORDS[COMP_CWORD-1]}}" in
{values}
    *) case "$COMP_CWORD ${{COMP_WORDS[1]}} $word" in
      1*) words="{commands}" ;;
{options}
{names}
    esac ;;
  esac
  COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
complete -o default -o bashdefault -F _cet_rl cet-rl"""

NAMES = {"train": ("envs", "datasets", "tasks"), "sweep": ("configs",), "rules": ("rules",)}
VALUES = {"--trace": "traces", "--rule": "rules", "--agent": "agents", "--config": "configs", "-c": "configs"}
"""Lists of `cet-rl list` that complete the first word of a command (`NAMES`), and an option's value (`VALUES`)."""


def run(arguments: Sequence[str]) -> int:
    """Run the command, and return its exit status."""
    if arguments:
        print(__doc__, end="")
        return 0 if set(arguments) <= {"-h", "--help"} else 2
    os.environ["COLUMNS"] = "1000"  # so that the help breaks no list of choices
    lists = {name: [entry for entry in read() if " " not in entry] for name, read in LISTS.items()}
    options, values = [], []
    for command in COMMANDS:
        found, choices = set[str](), dict[str, Iterable[str]]()
        for task in ("CartPole-v1", "digits", "add") if command == "train" else ("",):
            text = _help([command, *filter(None, [task])])
            # Not prose, which also names options.
            for usage in re.findall(r"^[ │|]+(-.+?)  ", text, re.MULTILINE) or ["--help"]:
                names = re.findall(r"(?<!\S)--?[a-z][\w-]*", usage)
                found |= {name for name in names if name.startswith("--")}
                if takes := re.search(r" (?:\{(.+)\}|[A-Z]+)", usage):
                    each = takes[1].split(",") if takes[1] else ()  # without choices: any text, or a file
                    choices |= {name: dict.fromkeys([*choices.get(name, ()), *each]) for name in names}
        choices |= {name: lists[source] for name, source in VALUES.items() if name in choices}
        options.append(f'      *" {command} -"*) words="{" ".join(sorted(found))}" ;;')
        values += [f'    "{command} {name}") words="{" ".join(each)}" ;;' for name, each in choices.items()]
    named = {name: [entry for source in sources for entry in lists[source]] for name, sources in NAMES.items()}
    named["list"] = list(LISTS)
    names = [f'      *" {command} "*) words="{" ".join(each)}" ;;' for command, each in named.items()]
    parts = {"values": values, "options": options, "names": names}
    print(SCRIPT.format(commands=" ".join(COMMANDS), **{name: "\n".join(each) for name, each in parts.items()}))
    return 0


def _help(words: Sequence[str]) -> str:
    """Return what a command prints for --help."""
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit):
        main([*words, "--help"])
    return shown.getvalue()
