"""Writes regular_expressions.json: what Python's `re` says of patterns and texts.

  matches   pattern -> one character a text, 1 where re.fullmatch matches
  errors    patterns that are no regular expressions to Python
  refused   patterns that are, which lora refuses by design

Some patterns are written by hand, some random and well-formed, and some random sequences of what other engines read
otherwise, which Python may accept or not.
"""
import json
import pathlib
import random
import re
import re._constants as codes
import re._parser as parser
import signal
import warnings

warnings.simplefilter("ignore")

WRITTEN = [
    # characters, dots, alternatives
    "a", "abc", "a.c", r"a\.c", ".*", ".+", ".?", "(a|b)*", "(?:a|b)+", "a*b*", "a|b", "a|", "|a", "", "()", "(|a)b",
    "(a|ab)(c|bcd)?", "a||b", "(?:)", "(?:)*a",
    # counts, and braces that are none
    "a{2}", "a{2,}", "a{,2}", "a{1,2}", "a{0}", "a{0,0}b", "a{", "a{}", "a{,}", "a{x}", "a{1", "a{1,", "a{1,2", "{", "}",
    "]", "{a}", "{}", "a{ 1}", "a{01}", "{,a}", "x{2}{", "(a{1,2}){2}", "(a{2}|b){1,3}", "a{0,1}{", "a{1}}",
    # lazy forms
    "a*?", "a+?b", "a??", "a{1,2}?", "(a|b)*?c", "a{?", ".*?a.*?",
    # classes
    "[abc]", "[^abc]", "[a-c]+", "[]]", "[]a]", "[^]]", "[^]a]*", "[a-]", "[-a]", "[a-c-e]", "[-]", "[^-]", "[^^]", "[a^]",
    r"[\]]", r"[\\]", r"[\d]", r"[^\d]", r"[\w.]+", r"[\s]", r"[^\s]", r"[\W\d]", r"[\D]", r"[\-a]", r"[a\-c]", r"[\b]",
    r"[\n]", r"[\x41-\x43]", r"[\101]", r"[\0]", r"[.]", "[*+?]", "[(|)]", "[$]", "[{}]", "[[]", "[[:alpha:]]", "[a[b]",
    "[!--]", "[a&&b]", "[a||b]", "[ -~]", r"[\d-]", r"[\w-]", r"[\d-]a", r"[\S\s]*", r"[^\W]", r"[^\S]",
    # categories and escapes
    r"\d", r"\d+", r"\D", r"\w", r"\w+", r"\W", r"\s", r"\S", r"\S+", r"\.", r"\\", r"\n", r"\t", r"\x41", r"\x2e", r"\056",
    r"\0", r"\101", r"\u0041", r"\U00000041", r"\*", r"\(", r"\[", r"\]", r"\{", r"\}", r"\|", r"\^", r"\$", r"\-", r"\_",
    r"\/", r"\ ", r"\"", r"\a", r"\f", r"\v", r"\r", r"\08", r"\0011", r"\1011",
    # edges
    "^a", "a$", "^a$", "^", "$", "^$", "^^a", "a$$", r"\Aa", r"a\Z", r"\A\Z", "a^", "$a", "a^b", "a$b", "(^a|b)", "(a$|b)",
    r"a$\n", r"a\n$", r"a\Z\n", r".*$\n?", r"\ba", r"a\b", r"\bab\b", r"\Ba", r"a\B", r"a\Bb", r"a\bb", r"\b", r"\B",
    r"a\b\.", r"a\b\.\bb", r"(?:\b.)*", r"(^)*a", r"(?:^)*a", r"(?:$)+", r"a(?:\b)*", r"(\b|a)+b",
    # groups
    "(a)", "((a))", "(a)(b)", "(?P<x>a)", "(?P<x_1>a)b", "(?P<x>a)(?P<y>b)", "(?:(?:a))*", "(a(b(c)?)?)?", "(?#note)a",
    "a(?#note)*", "a(?#)b", "(a*)*", "(a*)+b", "(a|b*)*c", "((a|b)*)*", "(a?)*b", "(a+)+", "((a{1,2}){1,2}){1,2}",
    "(?:a*)*", "(?:a*){2}", "(a*){3}b",
    # lookahead
    "(?=a)a", "(?=a).", "(?!a).", "(?!a).*", "(?=.*b)a.*", "(?!.*b).*", "(?=a)b", "a(?=b)b", "a(?!b).?", "a(?!b)",
    "a(?=$)", "a(?!.)", "(?=ab)(?=a)ab", "(?!(?!a)).", "(?=(?=a)a)a", "(?!(?=a)b).*", "(?:(?!b).)*", "(?=a)*a", "(?=a)+a",
    "(?!a)*a", "(?=a){2}a", "(?=a)?b", "((?=a)a|b)*", "(?=)a", "(?!)a", "(?!)|a", "(?=a|b).", "(?=.b)a.", "(?!.*\\.b)a.*",
    r"(?=a\b)a.*", "(?=^a)a", "a(?=^)", r".*layers\.(?!0\.).*", "(?:(?=(?:a|b)*c)[ab])*c", "(?=(a*))b*",
    # names
    r"layers\.\d+\.(q|v)", r".*\.(?:q|v)", r"layers\.[01]\.q", r"layers\.(?!0)\d\.q", r"(?:layers|h)\.\d{1,2}\..*",
    r".*(q|k)$", r"^layers.*q$", r"layers\.([0-9]|1[0-1])\.[qv]", r"(?!.*lm_head).*", r"\w+\.\d+\.\w+",
]

NO_EXPRESSIONS = [
    "(", ")", "a)", "(a", "((a)", "[", "[a", "[]", "[^]", "*", "+a", "?", "(*a)", "a|*", "(?:*)", "{2}", "a**", "a*{2}",
    "a{2}{3}", "a+*", "a???", "^*", "$+", r"\b*", r"\A?", r"\Z{2}", "(|*)", "a{3,2}", "\\", "a\\", "(?", "(?a", "(?z)",
    "(?Pa)", "(?P<>a)", "(?P<1>a)", "(?P<a-b>c)", "(?P<a", "(?P<a>b", "(?P<x>a)(?P<x>b)", "(?<a>b)", "(?#", "(?#a",
    "[b-a]", "[a--]", r"[a-\d]", r"[\d-a]", r"[\w-z]", r"\q", r"\y", r"[\q]", r"[\A]", r"[\Z]", r"[\B]", r"\x", r"\x4", r"\u004",
    r"[\8]", r"[\9]", r"\1", r"(a)\2", r"\8", r"(?P=x)", "(?=a", "(?!a", "[a-", r"[\d-", "(?'a')", "(?:a", "(?[a])", r"\U1",
]

REFUSED = [
    "(a)\\1", "(?P<x>a)(?P=x)", "(?<=a)b", "(?<!a)b", "(?i)a", "(?i:a)", "(?-i:a)", "(?x) a", "(?>a)", "a*+", "a++", "a?+",
    "a{2}+", "(a)?(?(1)b|c)", r"\xe9", r"\u00e9", r"\377", r"[\xe9]", "[\u00e9]", r"\N{DIGIT ONE}", "(?a)b",
]

TEXTS = [
    "", "a", "b", "c", "ab", "ba", "bb", "aa", "aaa", "abc", "abcd", "aab", "abb", "aaaa", "aabb", "abab", "a.c", "a\nc",
    "a\n", "\n", "a\n\n", "ab\n", ".", "a.b", "a.bc", "a b", "-", "a-", "]", "^", "\\", "[", "{", "}", "a{", "a{}", "a{1", "a{1,",
    "a{1,2", "a{x}", "a{,}", "{a}", "{}", "0", "1", "12", "a1", "_", " ", "\t", "\x1c", "\0", "\b", "A", "B", "Z", "ac", "bc",
    "abbc", "ababc", "a]", "*", "(", "|", "$", "$a", "~", "layers.0.q", "layers.1.q", "layers.12.v", "h.3.attn", "lm_head",
    "model.layers.10.q", "\u00e9", "a\u00e9b", "\u6f22.b", "\U0001f600", "n", "\x07", "8", "\0" "8", "A1", "\x01" "1", "/", "\"",
]


def random_pattern(rng, depth):
    def atom():
        kind = rng.random()
        if depth > 0 and kind < 0.3:
            opening = rng.choice(["(", "(?:", "(?:", "(?=", "(?!"])
            return opening + random_pattern(rng, depth - 1) + ")"
        if kind < 0.8:
            return rng.choice(["a", "b", "a", "b", ".", r"\.", "[ab]", "[^a]", "[^.]", r"\w", r"\W", r"\d"])
        return rng.choice(["^", "$", r"\b", r"\B", r"\Z"])

    def item():
        text = atom()
        if rng.random() < 0.4 and text not in ("^", "$", r"\b", r"\B", r"\Z"):
            text += rng.choice(["*", "+", "?", "{2}", "{1,2}", "{,2}", "{0}", "*?", "+?", "??", "{1,}"])
        return text

    branches = ["".join(item() for _ in range(rng.randint(0, 4))) for _ in range(rng.choice([1, 1, 1, 2, 3]))]
    return "|".join(branches)


PIECES = list("ab.^$*+?{}[]|()\\-,12:=!<P#\u00e9\n &~") + [
    "(?:", "(?=", "(?!", "(?P<x>", "(?#", "(?<", "[^", "[]", "[^]", r"\d", r"\w", r"\s", r"\D", r"\W", r"\S", r"\b", r"\B", r"\A",
    r"\Z", r"\z", r"\n", r"\x41", r"\x", r"\0", r"\1", r"\12", r"\101", r"\u0041", "[[:alpha:]]", "[:", "a-z", "{1,2}", "{,2}",
    "{2}", "{1", "{,}", "*?", "??", r"\Q", r"\E", r"\h", r"\R", r"\K", r"\G", r"\p{L}", "&&", "--", "||", "~~", r"\<", r"\>", r"\`",
    r"\e", r"\cA", r"\8", r"\08", r"\.", r"\-", r"\]", r"\[", r"\^",
]
MEMBERS = [
    "a", "b", "-", "a-c", "]", "[", r"\]", r"\d", r"\w", r"\-", "^", r"\b", r"\n", r"\x61", "0-9", "[:alpha:]", "[:", "&&", "--", ".",
    r"\.", r"\101", r"\0", r"\W", "|", "~",
]


def random_class(rng):
    members = [rng.choice(MEMBERS) for _ in range(rng.randint(0, 4))]
    return "[" + rng.choice(["", "^", "", "]", "^]"]) + "".join(members) + "]"


def random_pieces(rng):
    if rng.random() < 0.5:
        return "".join(rng.choice(PIECES) for _ in range(rng.randint(1, 9)))
    return "".join(random_class(rng) if rng.random() < 0.7 else rng.choice(PIECES) for _ in range(rng.randint(1, 4)))


def is_refused(parsed):
    """Whether what Python made of a pattern has a part that lora refuses, besides classes."""
    if isinstance(parsed, parser.SubPattern):
        parsed = parsed.data
    if isinstance(parsed, (list, tuple)):
        if parsed and parsed[0] in (codes.ASSERT, codes.ASSERT_NOT) and parsed[1][0] < 0:
            return True
        return any(is_refused(part) for part in parsed)
    return parsed in (codes.POSSESSIVE_REPEAT, codes.ATOMIC_GROUP, codes.GROUPREF, codes.GROUPREF_EXISTS)


def answers(pattern):
    compiled = re.compile(pattern)
    return "".join("1" if compiled.fullmatch(text) else "0" for text in TEXTS)


def main():
    rng = random.Random(1)
    patterns = dict.fromkeys(WRITTEN)
    while len(patterns) < 1500:
        patterns.setdefault(random_pattern(rng, 3))
    errors = dict.fromkeys(NO_EXPRESSIONS)
    refused = dict.fromkeys(REFUSED)
    while len(patterns) < 3000:
        pattern = random_pieces(rng)
        if "\u00e9" in pattern and "[" in pattern:
            continue
        try:
            parsed = parser.parse(pattern)
        except re.error:
            if len(errors) < 600:
                errors.setdefault(pattern)
            continue
        (refused if is_refused(parsed) else patterns).setdefault(pattern)
    matches = {}
    for pattern in patterns:
        signal.alarm(10)
        matches[pattern] = answers(pattern)
    signal.alarm(0)
    for pattern in errors:
        try:
            re.compile(pattern)
        except re.error:
            continue
        raise SystemExit(f"{pattern!r} is an expression")
    for pattern in refused:
        re.compile(pattern)
    table = {"texts": TEXTS, "matches": matches, "errors": list(errors), "refused": list(refused)}
    path = pathlib.Path(__file__).with_name("regular_expressions.json")
    path.write_text(json.dumps(table, indent=0) + "\n")


main()
