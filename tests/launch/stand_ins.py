"""A place to run the scripts of launch/ in, where other commands only write down what they were asked for."""

import pathlib
import shutil
import subprocess

ROOT = pathlib.Path(__file__).resolve().parents[2]
LAUNCH = ROOT / "launch"
TOOLS = (
    "basename", "bash", "cat", "cksum", "cp", "cut", "date", "dirname", "env", "find", "grep", "hostname", "ln",
    "mkdir", "mv", "nohup", "nproc", "rm", "sed", "setsid", "tail", "touch",
)  # fmt: skip
# Writes down its arguments. What it answers stands line by line in files of the folder ANSWERS, the last line for ever;
# !N is failure with exit code N.
STAND_IN = """#!/bin/bash
echo "${0##*/} $*" >>LOG
answer() {
  [[ -e ANSWERS/$1 ]] || return 0
  until mkdir ANSWERS/$1.taken 2>/dev/null; do :; done # hosts ask at the same time
  mapfile -t lines <ANSWERS/$1
  ((${#lines[@]} < 2)) || printf '%s\\n' "${lines[@]:1}" >ANSWERS/$1
  rm -r ANSWERS/$1.taken
  [[ $lines != '!'* ]] || exit "${lines#!}"
  [[ -z $lines ]] || echo "$lines"
}
case "$*" in
  cat-file*) answer committed ;;
  status\\ --porcelain) answer uncommitted ;;
  *queued-resources\\ list*) answer requests ;;
  *tpu-vm\\ list* | *instances\\ list*) answer machines ;;
  *worker.sh\\ state*) answer states ;;
  *worker.sh\\ start*) answer starts ;;
  *worker.sh\\ install*) answer installs ;;
  *worker.sh\\ expect*) answer expected ;;
  *pwd\\ -P*) answer places ;;
  *worker.sh\\ need*) answer needs ;;
  *queued-resources\\ delete* | *queued-resources\\ create*) answer changes ;;
esac
"""


class Place:
    """A copy of the scripts, a PATH with stand-ins, and the log of what these were asked for."""

    def __init__(self, folder, commands=("gcloud", "git", "scp", "sleep", "ssh"), tools=TOOLS, stand_in=STAND_IN):
        self.folder, self.log, self.answers, self.path = (folder / n for n in ("repository", "log", "answers", "bin"))
        self.path.mkdir()
        self.answers.mkdir()
        for tool in tools:
            (self.path / tool).symlink_to(shutil.which(tool))
        for command in commands:
            self.program(self.path / command, stand_in)
        shutil.copytree(LAUNCH, self.folder / "launch", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
        shutil.copytree(ROOT / "configs", self.folder / "configs")
        shutil.copy(ROOT / "setup.py", self.folder)

    def program(self, path, text):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)  # it may be a link to the real command, which must not be written to
        path.write_text(text.replace("LOG", str(self.log)).replace("ANSWERS", str(self.answers)))
        path.chmod(0o755)

    def link(self, name, target):
        """A command that is the real one."""
        self.program(self.path / name, f'#!/bin/bash\nexec {target} "$@"\n')

    def answer(self, **answers):
        for name, lines in answers.items():
            (self.answers / name).write_text("".join(f"{line}\n" for line in lines))

    def run(self, script, *arguments, **variables):
        self.log.write_text("")
        outcome = subprocess.run(
            ["bash", f"launch/{script}", *arguments], cwd=self.folder, env={"PATH": str(self.path), **variables},
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        return outcome, self.log.read_text().splitlines()
