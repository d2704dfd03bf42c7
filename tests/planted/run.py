"""Plants the bugs of tests/planted/*.bugs and shows which of them the tests catch.

A bug is a section of such a file:

    [scale of the forward pass is lost]
    file: layers/factor_pass.hpp
    test: layers/answer_law_test.cpp layers/linear_test.cpp
    catches: Answers.AgreeWithTheDenseFormulaForwardAndBackward
    - scaled_(i, p) = part.scale * pass.u(i, p);
    + scaled_(i, p) = pass.u(i, p);

The lines behind "- " must stand in include/lora/FILE exactly once; those behind "+ " replace them. TEST names the
sources of the tests, and CATCHES those that should fail: their names as in the source, or gtest filters.

Compilers are what takes time, so that bugs share a build: a copy of include/ for each test source has all of its bugs,
each behind a switch that LORA_PLANTED turns on in the test program. So text that ends in ";" or "}" must be whole
statements, and any other text a whole expression; `alone: yes` is for what is neither, and builds a copy with this bug
and no other. `--alone` builds each bug so. Programs are compiled at -O0. A bug is

    caught    if one of these tests fails, the program crashes or hangs, or a static assertion fails;
    missed    if all pass;
    broken    if its text is not found once, it does not compile, or these tests fail without it.

Results are kept in build/planted/ until the bugs, the tests or the headers that they include change, so that a run that
was stopped goes on where it was.
"""

import argparse
import concurrent.futures
import hashlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUGS = ROOT / "tests/planted"
INCLUDE = ROOT / "include"
WORK = ROOT / "build/planted"
COMPILER = os.environ.get("CXX", "g++")
DEFINITIONS = {
    "LORA_GOLDEN_DIR": ROOT / "tests/golden",
    "LORA_REAL_DIR": ROOT.parent / "shared/real",
    "LORA_SOURCE_DIR": ROOT,
    "LORA_MPIEXEC": shutil.which("mpirun") or "mpirun",
}
# -w: a bug may leave something unused.
FLAGS = ["-std=c++20", "-O0", "-g0", "-w"] + [f'-D{name}="{value}"' for name, value in DEFINITIONS.items()]
SYSTEM = ["-isystem", "/usr/include/eigen3"]
LIBRARIES = ["-lgtest", "-lgtest_main", "-lrapidcheck", "-lz", "-lpthread"]
RANKS = "3"
LIMIT = 600  # seconds for the tests of one bug


# In constant expressions every bug is off.
PREFIX = """#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>
#include <Eigen/Core>
#include <cstdlib>
#include <type_traits>
namespace lora_planted {
inline const int chosen = std::getenv("LORA_PLANTED") != nullptr ? std::atoi(std::getenv("LORA_PLANTED")) : 0;
constexpr bool on(int bug) noexcept { return !std::is_constant_evaluated() && chosen == bug; }
}  // namespace lora_planted
"""


class Broken(Exception):
    """What keeps a bug from being judged."""


def every_form(name):
    """A test's name as it stands in its source, as a gtest filter of all that is made of it by types and parameters."""
    suite, _, test = name.partition(".")
    if "/" in name or not test:
        return name
    return f"{suite}.{test}:{suite}/*.{test}:*/{suite}.{test}/*:*/{suite}/*.{test}/*"


class Bug:
    def __init__(self, place, name):
        self.place, self.name = place, name
        self.fields = {}
        self.old, self.new = [], []

    def finish(self, all_alone):
        missing = {"file", "test", "catches"} - self.fields.keys()
        if missing or not self.old:
            sys.exit(f"{self.place}: [{self.name}] lacks {', '.join(sorted(missing)) or 'the text to replace'}")
        self.file = self.fields["file"]
        self.sources = self.fields["test"].split()
        self.catches = self.fields["catches"].split(":")
        self.filter = ":".join(every_form(name) for name in self.catches)
        self.alone = all_alone or self.fields.get("alone") == "yes"
        self.old, self.new = "\n".join(self.old), "\n".join(self.new)
        self.id = int(digest(self.name)[:7], 16)
        if self.old == self.new:
            sys.exit(f"{self.place}: [{self.name}] changes nothing")
        # The laws of layers ask for every kind; this source stands in for those that the bug does without.
        if any(source.startswith("layers/") for source in self.sources):
            self.sources.append("planted/no_cases.cpp")
        if any(source.startswith("mpi/") for source in self.sources):
            self.sources.append("mpi/main.cpp")

    def find(self):
        """Where its text begins. @throws Broken"""
        path = INCLUDE / "lora" / self.file
        text = path.read_text() if path.exists() else ""
        found = text.count(self.old)
        if found != 1:
            raise Broken(f"the text to replace stands {found} times in include/lora/{self.file}")
        return text.index(self.old)


def switched(old, bugs):
    """The text `old` with a switch for each of these bugs, which all replace it."""
    choices = [f"::lora_planted::on({bug.id})" for bug in bugs]
    if old.rstrip()[-1] in ";}":
        text = "".join(f"if ({on}) {{ {bug.new} }} else " for on, bug in zip(choices, bugs))
        return f"{text}{{ {old} }}"
    return "(" + "".join(f"{on} ? ({bug.new}) : " for on, bug in zip(choices, bugs)) + f"({old}))"


def plant(bugs, include):
    """Writes include/ with these bugs, each behind its switch; a single one that is to stand alone, without."""
    files = {}
    for bug in bugs:
        files.setdefault(bug.file, {}).setdefault((bug.find(), bug.old), []).append(bug)
    for path in INCLUDE.rglob("*.*"):
        name = path.relative_to(INCLUDE / "lora").as_posix()
        text = path.read_text()
        end = len(text)
        for (begin, old), same in sorted(files.get(name, {}).items(), reverse=True):
            if begin + len(old) > end:
                raise Broken(f"its text overlaps that of another bug: [{same[0].name}] (give it `alone: yes`)")
            new = same[0].new if same[0].alone else switched(old, same)
            text = text[:begin] + new + text[begin + len(old):]
            end = begin
        target = include / "lora" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists() or target.read_text() != text:
            target.write_text(text)
    for path in include.rglob("*.*"):
        if not (INCLUDE / path.relative_to(include)).exists():
            path.unlink()


def read_bugs(all_alone):
    bugs = []
    for path in sorted(BUGS.glob("*.bugs")):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            place = f"{path.relative_to(ROOT)}:{number}"
            header = re.fullmatch(r"\[(.+)\]", line)
            field = re.fullmatch(r"(file|test|catches|alone): *(.+)", line)
            if header:
                bugs.append(Bug(place, header[1]))
            elif not line or line.startswith("#"):
                continue
            elif not bugs:
                sys.exit(f"{place}: expected a [name] first")
            elif field:
                bugs[-1].fields[field[1]] = field[2]
            elif line[:2] in ("- ", "-"):
                bugs[-1].old.append(line[2:])
            elif line[:2] in ("+ ", "+"):
                bugs[-1].new.append(line[2:])
            else:
                sys.exit(f"{place}: expected a field, or text behind '- ' or '+ '")
    for bug in bugs:
        bug.finish(all_alone)
    names = [bug.name for bug in bugs]
    for name in names:
        if names.count(name) > 1:
            sys.exit(f"two bugs are called [{name}]")
    return bugs


def run(command, **options):
    return subprocess.run([str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          errors="replace", **options)


def dependencies(rule):
    """The files that a compiler's rule for make names, in which a backslash stands before a blank of a name."""
    names = re.split(r"(?<!\\)\s+", rule.replace("\\\n", " ").split(":", 1)[1].strip())
    return [re.sub(r"\\([ #])", r"\1", name).replace("$$", "$") for name in names]


def digest(*parts):
    whole = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else str(part).encode()
        whole.update(len(data).to_bytes(8, "little") + data)
    return whole.hexdigest()


def mpi_flags():
    """What mpicxx adds; None without MPI."""
    try:
        shown = run(["mpicxx", "--showme:compile"]), run(["mpicxx", "--showme:link"])
    except FileNotFoundError:
        return None
    return [one.stdout.split() for one in shown] if all(one.returncode == 0 for one in shown) else None


class Builder:
    """Compiles and links test programs. What has not changed since the last run is not made again."""

    def __init__(self, bugs):
        self.mpi = mpi_flags()
        self.version = run([COMPILER, "--version"]).stdout
        self.locks, self.lock = {}, threading.Lock()
        self.failures = {}  # of compilers, which are not asked twice in one run
        self.bugs_of = {source: [bug for bug in bugs if source in bug.sources and not bug.alone]
                        for bug in bugs for source in bug.sources}
        WORK.mkdir(parents=True, exist_ok=True)
        self.prefix = WORK / "prefix.hpp"
        self.make_prefix()

    def make_prefix(self):
        """What no bug changes is parsed once."""
        text = PREFIX
        stamp = WORK / "prefix.key"
        key = digest(text, FLAGS, self.version)
        if stamp.exists() and stamp.read_text() == key:
            return
        self.prefix.write_text(text)
        made = run([COMPILER, *FLAGS, *SYSTEM, "-x", "c++-header", self.prefix, "-o", f"{self.prefix}.gch"])
        if made.returncode != 0:
            sys.exit(made.stdout)
        stamp.write_text(key)

    def only_one(self, name):
        with self.lock:
            return self.locks.setdefault(str(name), threading.Lock())

    def shared(self, source):
        """The object of a source with all of its bugs behind switches, and the key of what went into it."""
        return self.object_of(source, self.bugs_of[source], WORK / "shared" / source.replace("/", "+"))

    def object_of(self, source, bugs, folder):
        with self.only_one(folder):
            if folder in self.failures:
                raise Broken(self.failures[folder])
            plant(bugs, folder / "include")
            target, stamp = folder / "object.o", folder / "key"
            key = self.key_of(target)
            if not key or not stamp.exists() or stamp.read_text() != key:
                self.compile(source, folder / "include", target)
                key = self.key_of(target)
                stamp.write_text(key)
            return target, key

    def compile(self, source, include, target):
        more = self.mpi[0] if source.startswith("mpi/") else []
        made = run([COMPILER, *FLAGS, "-include", self.prefix, "-I", include, "-I", ROOT / "tests",
                    "-I", ROOT / "examples", *SYSTEM, *more, "-MMD", "-MF", f"{target}.d", "-c",
                    ROOT / "tests" / source, "-o", target])
        if made.returncode != 0:
            target.unlink(missing_ok=True)
            errors = [line.replace(f"{include}/", "") for line in made.stdout.splitlines() if "error" in line][:3]
            self.failures[target.parent] = f"tests/{source} does not compile: {' | '.join(errors)}"
            raise Broken(self.failures[target.parent])

    @staticmethod
    def included(target):
        depends = pathlib.Path(f"{target}.d")
        if not target.exists() or not depends.exists():
            return None
        return [name for name in dependencies(depends.read_text()) if name.startswith(f"{ROOT}/")]

    def key_of(self, target):
        names = self.included(target)
        if not names or not all(os.path.exists(name) for name in names):
            return None
        return digest(FLAGS, PREFIX, self.version, *(pathlib.Path(name).read_bytes() for name in names))

    def link(self, sources, objects, program):
        more = self.mpi[1] if "mpi/main.cpp" in sources else []
        made = run([COMPILER, *objects, "-o", program, *LIBRARIES, *more])
        if made.returncode != 0:
            raise Broken("does not link: " + made.stdout[-300:])

    def program(self, bug):
        """The program of a bug's tests with switches, and the key of what went into it."""
        made = [self.shared(source) for source in bug.sources]
        key = digest(*(one for _, one in made))
        program = WORK / "programs" / digest(bug.sources)[:16]
        stamp = program.with_suffix(".key")
        with self.only_one(program):
            if not program.exists() or not stamp.exists() or stamp.read_text() != key:
                program.parent.mkdir(exist_ok=True)
                self.link(bug.sources, [target for target, _ in made], program)
                stamp.write_text(key)
        return program, key

    def program_alone(self, bug):
        """The program with this bug in place of the code."""
        folder = WORK / "alone" / digest(bug.name)[:16]
        objects = []
        for source in bug.sources:
            target, _ = self.shared(source)
            if any(name.endswith(f"/include/lora/{bug.file}") for name in self.included(target)):
                target, _ = self.object_of(source, [bug], folder / source.replace("/", "+"))
            objects.append(target)
        self.link(bug.sources, objects, folder / "program")
        return folder / "program"


def run_tests(program, filter_, sources, planted):
    """Whether the selected tests pass with this bug turned on (0: none), and what went wrong otherwise."""
    environment = dict(os.environ, LORA_PLANTED=str(planted), GTEST_COLOR="no", OMPI_ALLOW_RUN_AS_ROOT="1",
                       OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1", OMPI_MCA_rmaps_base_oversubscribe="1",
                       OMPI_MCA_mpi_yield_when_idle="1")
    on_ranks = "mpi/main.cpp" in sources and "Job." not in filter_  # a job starts its ranks itself
    on_one = [program, f"--gtest_filter={filter_}"]
    command = ["mpirun", "-n", RANKS, program, "--ranks", filter_] if on_ranks else on_one
    try:
        ended = run(["timeout", "--kill-after=10", LIMIT, *command], cwd=ROOT, env=environment)
    except OSError as error:
        raise Broken(str(error)) from error
    if ended.returncode == 124:
        return False, "hangs"
    failed = re.search(r"^\[  FAILED  \] (\S+)", ended.stdout, re.MULTILINE)
    if ended.returncode != 0:
        running = re.findall(r"^\[ RUN      \] (\S+)", ended.stdout, re.MULTILINE)
        return False, failed[1].rstrip(",") if failed else "crash in " + (running[-1] if running else "its start")
    passed = re.search(r"^\[  PASSED  \] (\d+) test", ended.stdout, re.MULTILINE)
    if not passed or passed[1] == "0":
        raise Broken(f"'{filter_}' selects no test that runs")
    return True, ""


def require_tests(program, names):
    """Every name selects a test of the program, so that none stands there in vain. @throws Broken"""
    for name in names:
        listed = run([program, "--gtest_list_tests", f"--gtest_filter={every_form(name)}"], cwd=ROOT)
        if not re.search(r"^  \S", listed.stdout, re.MULTILINE):
            raise Broken(f"'{name}' selects no test")


class Judge:
    def __init__(self, builder, again):
        self.builder, self.again = builder, again
        self.path = WORK / "results.json"
        self.results = json.loads(self.path.read_text()) if self.path.exists() else {}
        self.lock = threading.Lock()

    def remember(self, key, result):
        with self.lock:
            self.results[key] = result
            self.path.with_suffix(".new").write_text(json.dumps(self.results, indent=1))
            self.path.with_suffix(".new").replace(self.path)

    def require_passing(self, bug, program, key):
        """The tests that should fail with the bug pass without it."""
        name = digest("without", key, bug.filter)
        with self.builder.only_one(name):
            if name in self.results:
                return
            require_tests(program, bug.catches)
            passed, why = run_tests(program, bug.filter, bug.sources, 0)
            if not passed:
                raise Broken(f"these tests fail without it: {why}")
            self.remember(name, "pass")

    def judge(self, bug):
        """(verdict, explanation)"""
        if self.builder.mpi is None and "mpi/main.cpp" in bug.sources:
            return "skipped", "no MPI"
        try:
            bug.find()
            program, key = self.builder.program(bug)
            name = digest(key, bug.alone, bug.id, bug.file, bug.old, bug.new, bug.filter)
            if name in self.results and not self.again:
                return self.results[name]
            self.require_passing(bug, program, key)
            result = self.try_out(bug, program)
            self.remember(name, result)
            return result
        except Broken as broken:
            return "broken", str(broken)
        finally:
            shutil.rmtree(WORK / "alone" / digest(bug.name)[:16], ignore_errors=True)

    def try_out(self, bug, program):
        if bug.alone:
            try:
                program = self.builder.program_alone(bug)
            except Broken as broken:
                if "static assertion failed" in str(broken):
                    return ["caught", "a static assertion"]
                raise
        passed, why = run_tests(program, bug.filter, bug.sources, bug.id)
        return ["missed", bug.filter] if passed else ["caught", why]


def folders_without(bugs):
    folders = {path.name for path in (INCLUDE / "lora").iterdir() if path.is_dir()}
    return sorted(folders - {bug.file.split("/")[0] for bug in bugs})


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="TEXT", help="only bugs whose name, file or test source contains this text")
    parser.add_argument("--list", action="store_true", help="list the bugs and do nothing")
    parser.add_argument("--alone", action="store_true", help="build each bug in a copy of include/ of its own")
    parser.add_argument("--again", action="store_true", help="judge anew what was judged before")
    parser.add_argument("--jobs", type=int, default=int(os.environ.get("LORA_JOBS", os.cpu_count() or 1)), metavar="N",
                        help="programs at a time, each with a compiler of about 1 GB; by default the number of cores")
    arguments = parser.parse_args()

    if arguments.alone:
        global WORK
        WORK = ROOT / "build/planted_alone"
    all_bugs = read_bugs(arguments.alone)
    chosen = [bug for bug in all_bugs
              if not arguments.only or arguments.only in " ".join([bug.name, bug.file, *bug.sources])]
    if not chosen:
        sys.exit(f"no bug has '{arguments.only}' in its name, file or test source")
    if arguments.list:
        for bug in chosen:
            print(f"{bug.file}: {bug.name}")
        return 0

    judge = Judge(Builder(all_bugs), arguments.again)
    verdicts = {"caught": [], "missed": [], "broken": [], "skipped": []}
    begin = time.monotonic()

    def judge_all(bugs):
        for bug in bugs:
            verdict, why = judge.judge(bug)
            verdicts[verdict].append(bug)
            print(f"{verdict:8}{bug.file}: {bug.name} ({why})", flush=True)

    # One thread takes the bugs of one program, as they wait for the same compiler.
    groups = {}
    for bug in chosen:
        groups.setdefault(tuple(bug.sources), []).append(bug)
    with concurrent.futures.ThreadPoolExecutor(max(1, arguments.jobs)) as pool:
        list(pool.map(judge_all, groups.values()))

    missing = folders_without(all_bugs)
    print(f"\n{len(chosen)} bugs in {(time.monotonic() - begin) / 60:.0f} min:",
          ", ".join(f"{len(some)} {verdict}" for verdict, some in verdicts.items() if some))
    for verdict in ("missed", "broken"):
        for bug in verdicts[verdict]:
            print(f"  {verdict}: {bug.place} [{bug.name}]")
    if missing:
        print("  no bug is planted in include/lora/" + ", ".join(missing))
    return 1 if verdicts["missed"] or verdicts["broken"] or missing else 0


if __name__ == "__main__":
    sys.exit(main())
