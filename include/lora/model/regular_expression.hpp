// SPDX-License-Identifier: MIT
// Python's regular expressions, restricted to whether a whole text matches.
//
// std::regex would take longer to compile than the rest of the library, has a different syntax (ECMAScript) and,
// outside libstdc++, takes exponential time on hostile patterns.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "lora/core/error.hpp"
#include "lora/core/types.hpp"
#include "lora/model/quoted_name.hpp"

namespace lora::detail {

/// A set of bytes.
template <class Char>
class BasicByteSet {
 public:
  [[nodiscard]] constexpr bool contains(unsigned byte) const noexcept {
    return (words_[byte >> 6U] >> (byte & 63U) & 1U) != 0;
  }
  constexpr void add(unsigned first, unsigned last) noexcept {
    for (unsigned byte = first; byte <= last; ++byte) words_[byte >> 6U] |= std::uint64_t{1} << (byte & 63U);
  }
  constexpr void add(const BasicByteSet& other) noexcept {
    for (int i = 0; i < 4; ++i) words_[i] |= other.words_[i];
  }
  [[nodiscard]] constexpr BasicByteSet inverse() const noexcept {
    BasicByteSet result;
    for (int i = 0; i < 4; ++i) result.words_[i] = ~words_[i];
    return result;
  }

  /// Python's \d, \s and \w, for ASCII only. Python also treats the separators 0x1C to 0x1F as white space.
  [[nodiscard]] static constexpr BasicByteSet category(char letter) noexcept {
    BasicByteSet set;
    if (letter == 's') {
      set.add(0x09, 0x0D);
      set.add(0x1C, 0x20);
      return set;
    }
    set.add('0', '9');
    if (letter == 'd') return set;
    set.add('A', 'Z');
    set.add('a', 'z');
    set.add('_', '_');
    return set;
  }

 private:
  std::uint64_t words_[4] = {};
};

/// An expression in the syntax of Python's `re` without flags, over UTF-8: whether a whole text matches.
///
/// Supported are characters and escapes (\n, \x41, \052, ...), `.`, classes ([a-z], [^]x]), \d \D \s \S \w \W, ^ $ \A
/// \Z \b \B, groups ((...), (?:...), (?P<name>...)), |, the quantifiers * + ? {m} {m,} {,n} {m,n} with their lazy
/// forms, which match the same texts, lookahead ((?=...), (?!...)) and comments. A pattern with other features of
/// Python is refused: back-references, lookbehind, flags, conditions, atomic groups, possessive quantifiers, \N{...},
/// and non-ASCII characters in classes or escapes. What \d, \s, \w and \b mean beyond ASCII is not known here; see
/// needs_ascii().
///
/// The text is read once, from its end to its start, tracking all possible states at a time, so no pattern takes more
/// than (length of the text) * (number of states) steps. The result of a lookahead is known by the time it is needed.
/// Source: Thompson, Comm. ACM 11 (1968); https://swtch.com/~rsc/regexp/regexp1.html.
///
/// A template so that only code that uses patterns compiles it; Char is char.
template <class Char>
class RegularExpression {
 public:
  static constexpr std::size_t max_pattern = 4096;  ///< bytes
  static constexpr int max_states = 20000;          ///< after expanding counted repetitions

  /// `operation` and `option` are named in errors. @throws ConfigError for an unsupported or malformed expression.
  RegularExpression(std::string_view operation, std::string_view option, std::basic_string_view<Char> pattern)
      : operation_(operation), option_(option), pattern_(pattern) {
    if (pattern.size() > max_pattern) fail_for_size();
    const int root = parse_alternatives();
    if (position_ < pattern_.size()) fail("a ) without (");
    add_machine(root);
    pattern_ = {};
    operation_ = option_ = {};
    nodes_ = {};
    group_names_ = {};
  }

  [[nodiscard]] std::size_t states() const noexcept { return states_.size(); }
  /// Whether the answer is Python's for texts in ASCII only.
  [[nodiscard]] bool needs_ascii() const noexcept { return needs_ascii_; }

  /// Whether the pattern matches a part of the text that begins at a position with `begins(i)` and ends at one with
  /// `ends(i)`; positions are 0 ... text.size(). Adds to `steps` the number of states that were visited. Any number of
  /// threads may use one object. @throws std::bad_alloc
  template <class Begins, class Ends>
  [[nodiscard]] bool matches(std::basic_string_view<Char> text, Begins begins, Ends ends, std::uint64_t& steps) const {
    steps += states_.size() / 16;
    std::vector<Reader> readers(machines_.size());
    std::vector<std::size_t> seen(states_.size(), text.size() + 1);
    std::vector<Index> pending;
    for (std::size_t place = text.size() + 1; place-- > 0;) {
      for (std::size_t m = 0; m < machines_.size(); ++m) {
        const bool main = m + 1 == machines_.size();
        Reader& reader = readers[m];
        pending.clear();
        if (place < text.size()) {
          for (const Index waiting : reader.waiting) {
            const State& state = states_[static_cast<std::size_t>(waiting)];
            if (sets_[static_cast<std::size_t>(state.argument)].contains(static_cast<unsigned char>(text[place]))) {
              pending.push_back(state.next);
            }
          }
        }
        reader.waiting.clear();
        reader.arrived = false;
        if (!main || ends(place)) pending.push_back(machines_[m]);
        while (!pending.empty()) {
          const Index index = pending.back();
          pending.pop_back();
          ++steps;
          if (index == arrived) {
            reader.arrived = true;
            continue;
          }
          if (seen[static_cast<std::size_t>(index)] == place) continue;
          seen[static_cast<std::size_t>(index)] = place;
          const State& state = states_[static_cast<std::size_t>(index)];
          switch (state.kind) {
            case Kind::set:
              reader.waiting.push_back(index);
              break;
            case Kind::fork:
              pending.push_back(state.next);
              pending.push_back(state.argument);
              break;
            case Kind::look:
            case Kind::look_not:
              if (readers[static_cast<std::size_t>(state.argument)].arrived == (state.kind == Kind::look)) {
                pending.push_back(state.next);
              }
              break;
            default:
              if (holds(state.kind, text, place)) pending.push_back(state.next);
          }
        }
        if (main && reader.arrived && begins(place)) return true;
      }
    }
    return false;
  }

 private:
  using ByteSet = BasicByteSet<Char>;

  enum class Kind : std::uint8_t {
    set,  // a byte of the set `argument`
    fork,
    look,  // lookahead: the machine `argument`
    look_not,
    text_begin,
    text_end,  // also before a final line feed
    very_end,
    word_edge,
    no_word_edge,
    sequence,  // nodes only, from here on
    alternatives,
    repetition
  };
  enum class Before : std::uint8_t { nothing, position, atom, repetition };  // what a quantifier would apply to

  static constexpr int none = -1;
  static constexpr int arrived = -1;
  static constexpr int unbounded = -1;

  /// Part of the pattern. Children are linked by `sibling`.
  struct Node {
    Kind kind = Kind::sequence;
    int child = none;
    int sibling = none;
    int argument = none;  // number of the set; for a look, its machine once it is built
    int least = 0;
    int most = 0;
    bool consumes = false;  // whether it can match more than the empty text
  };

  /// A state of a machine that reads from right to left.
  struct State {
    Kind kind;
    int argument;
    int next;
  };

  struct Reader {
    std::vector<Index> waiting;  // states waiting for the next byte
    bool arrived = false;
  };

  // Errors

  [[noreturn]] void fail(std::string_view reason) const {
    throw ConfigError(operation_, option_, "a regular expression of Python's that this library knows",
                      joined({quoted_name(pattern_), " with ", reason}));
  }
  [[noreturn]] void fail_for_size() const {
    throw ConfigError(operation_, option_,
                      joined({"a regular expression of at most ", std::to_string(max_pattern), " bytes and ",
                              std::to_string(max_states), " states with repetitions written out"}),
                      joined({quoted_name(pattern_), " of ", std::to_string(pattern_.size()), " bytes"}));
  }

  // Parsing

  [[nodiscard]] bool at_end() const noexcept { return position_ >= pattern_.size(); }
  [[nodiscard]] char peek() const noexcept { return at_end() ? '\0' : pattern_[position_]; }
  bool accept(char c) noexcept {
    if (at_end() || pattern_[position_] != c) return false;
    ++position_;
    return true;
  }
  char take(std::string_view what_is_missing) {
    if (at_end()) fail(what_is_missing);
    return pattern_[position_++];
  }

  int add_node(Kind kind) {
    nodes_.push_back({});
    nodes_.back().kind = kind;
    return static_cast<int>(nodes_.size()) - 1;
  }
  /// One character of a set; one that has the bytes beyond ASCII has all characters there.
  int add_character(const ByteSet& set) {
    if (!set.contains(0x80)) return add_set(set);
    ByteSet ascii, lead, more;
    for (unsigned byte = 0; byte < 0x80; ++byte) {
      if (set.contains(byte)) ascii.add(byte, byte);
    }
    lead.add(0xC0, 0xFF);
    more.add(0x80, 0xBF);
    List bytes;
    append(bytes, add_set(lead));
    append(bytes, add_set(more));
    repeat_last(bytes, 1, unbounded);  // no other item begins within a character
    List either;
    append(either, add_set(ascii));
    append(either, close(bytes, Kind::sequence));
    return close(either, Kind::alternatives);
  }
  int add_set(const ByteSet& set) {
    const int index = add_node(Kind::set);
    nodes_.back().argument = static_cast<int>(sets_.size());
    nodes_.back().consumes = true;
    sets_.push_back(set);
    return index;
  }
  int add_byte(unsigned char byte) {
    ByteSet set;
    set.add(byte, byte);
    return add_set(set);
  }
  Node& node(int index) noexcept { return nodes_[static_cast<std::size_t>(index)]; }

  /// A list of nodes that becomes one node; a list of one member becomes that member.
  struct List {
    int first = none;
    int last = none;
    bool consumes = false;
  };
  void append(List& list, int index) noexcept {
    (list.last == none ? list.first : node(list.last).sibling) = index;
    list.last = index;
    list.consumes = list.consumes || node(index).consumes;
  }
  int close(const List& list, Kind kind) {
    if (list.first != none && list.first == list.last) return list.first;
    const int index = add_node(kind);
    node(index).child = list.first;
    node(index).consumes = list.consumes;
    return index;
  }

  /// Parses up to the end, or up to the ) of the current group. Recursion is as deep as groups are nested.
  int parse_alternatives() {
    List alternatives;
    List sequence;
    Before before = Before::nothing;
    while (!at_end() && peek() != ')') {
      const char c = pattern_[position_++];
      if (c == '|') {
        append(alternatives, close(sequence, Kind::sequence));
        sequence = {};
        before = Before::nothing;
      } else if (int least = 0, most = 0; is_quantifier(c, least, most)) {
        repeat(sequence, before, least, most);
        before = Before::repetition;
      } else if (c == '(') {
        if (accept_comment()) continue;
        append(sequence, parse_group());
        before = Before::atom;
      } else {
        const int item = parse_item(c);
        append(sequence, item);
        const Kind kind = node(item).kind;
        before = kind >= Kind::text_begin && kind <= Kind::no_word_edge ? Before::position : Before::atom;
      }
    }
    if (alternatives.first == none) return close(sequence, Kind::sequence);
    append(alternatives, close(sequence, Kind::sequence));
    return close(alternatives, Kind::alternatives);
  }

  /// Reads the rest of a quantifier that begins with c. A { that begins no quantifier is a character.
  bool is_quantifier(char c, int& least, int& most) {
    if (c == '*' || c == '+' || c == '?') {
      least = c == '+' ? 1 : 0;
      most = c == '?' ? 1 : unbounded;
      return true;
    }
    if (c != '{') return false;
    const std::size_t start = position_;
    if (peek() == '}') return false;
    const int low = parse_number();
    int high = low;
    if (accept(',')) high = parse_number();
    if (!accept('}')) {
      position_ = start;
      return false;
    }
    least = low == none ? 0 : low;
    most = high == none ? unbounded : high;
    return true;
  }

  /// The number at this position, at most max_states + 1; none if there is no digit.
  int parse_number() noexcept {
    int number = none;
    for (; peek() >= '0' && peek() <= '9'; ++position_) {
      number = (number == none ? 0 : number) * 10 + (peek() - '0');
      if (number > max_states) number = max_states + 1;
    }
    return number;
  }

  void repeat(const List& sequence, Before before, int least, int most) {
    if (before == Before::nothing || before == Before::position) fail("nothing to repeat before a quantifier");
    if (before == Before::repetition) fail("a quantifier behind a quantifier");
    if (most != unbounded && most < least) fail("a repetition whose least count is above its greatest");
    if (least > max_states || most > max_states) fail_for_size();
    if (accept('+')) fail("a possessive quantifier, which is not supported");
    accept('?');  // lazy: matches the same texts
    repeat_last(sequence, least, most);
  }

  /// Replaces the last node of the sequence by a repetition of it.
  void repeat_last(const List& sequence, int least, int most) {
    const Node repeated = node(sequence.last);
    const int child = add_node(repeated.kind);
    node(child) = repeated;
    node(child).sibling = none;
    Node& repetition = node(sequence.last);
    repetition.kind = Kind::repetition;
    repetition.child = child;
    repetition.least = least;
    repetition.most = most;
  }

  /// After ( : skips "?#...)".
  bool accept_comment() {
    if (pattern_.substr(position_, 2) != "?#") return false;
    while (take("a comment without end") != ')') {
    }
    return true;
  }

  /// After ( .
  int parse_group() {
    Kind kind = Kind::sequence;
    if (accept('?')) {
      const char c = take("a group without )");
      if (c == '=' || c == '!') {
        kind = c == '=' ? Kind::look : Kind::look_not;
      } else if (c == 'P') {
        parse_group_name();
      } else if (c == '<') {
        fail(peek() == '=' || peek() == '!' ? "lookbehind, which is not supported" : "an unknown kind of group (?<");
      } else if (c == '>') {
        fail("an atomic group, which is not supported");
      } else if (c == '(') {
        fail("a condition (?(...)...), which is not supported");
      } else if (std::string_view("aiLmsux-").find(c) != std::string_view::npos) {
        fail("flags (?...), which are not supported");
      } else if (c != ':') {
        fail("an unknown kind of group");
      }
    }
    const int inner = parse_alternatives();
    if (!accept(')')) fail("a group without )");
    if (kind == Kind::sequence) return inner;
    const int look = add_node(kind);
    node(look).child = inner;
    return look;
  }

  /// After (?P : reads "<name>".
  void parse_group_name() {
    if (peek() == '=') fail("a back-reference, which is not supported");
    if (!accept('<')) fail("an unknown kind of group (?P");
    const std::size_t start = position_;
    while (take("a group name without >") != '>') {
    }
    const auto name = pattern_.substr(start, position_ - 1 - start);
    const ByteSet word = ByteSet::category('w');
    bool good = !name.empty() && !(name[0] >= '0' && name[0] <= '9');
    for (const char c : name) good = good && word.contains(static_cast<unsigned char>(c));
    if (!good) fail("a group name that is no identifier");
    for (const auto& other : group_names_) {
      if (other == name) fail("two groups of one name");
    }
    group_names_.push_back(name);
  }

  /// Any item that begins with c, except operators and groups.
  int parse_item(char c) {
    switch (c) {
      case '.': {
        ByteSet line_feed;
        line_feed.add('\n', '\n');
        return add_character(line_feed.inverse());
      }
      case '^':
        return add_node(Kind::text_begin);
      case '$':
        return add_node(Kind::text_end);
      case '[':
        return parse_class();
      case '\\':
        return parse_escape();
      default:
        return parse_character(c);
    }
  }

  /// A non-ASCII character is one item, with as many bytes as it has in UTF-8.
  int parse_character(char c) {
    if (static_cast<unsigned char>(c) < 0xC0) return add_byte(static_cast<unsigned char>(c));
    List bytes;
    append(bytes, add_byte(static_cast<unsigned char>(c)));
    while ((static_cast<unsigned char>(peek()) & 0xC0U) == 0x80U) {
      append(bytes, add_byte(static_cast<unsigned char>(pattern_[position_++])));
    }
    return close(bytes, Kind::sequence);
  }

  /// After a backslash outside a class.
  int parse_escape() {
    const char c = take("a backslash at the end");
    switch (c) {
      case 'A':
        return add_node(Kind::text_begin);
      case 'Z':
        return add_node(Kind::very_end);
      case 'b':
      case 'B':
        needs_ascii_ = true;
        return add_node(c == 'b' ? Kind::word_edge : Kind::no_word_edge);
      default:
        break;
    }
    ByteSet set;
    if (accept_category(c, set)) return add_character(set);
    if (static_cast<unsigned char>(c) >= 0x80) return parse_character(c);
    return add_byte(static_cast<unsigned char>(parse_escaped(c, false)));
  }

  bool accept_category(char c, ByteSet& set) noexcept {
    if (std::string_view("dDsSwW").find(c) == std::string_view::npos) return false;
    needs_ascii_ = true;
    const bool inverse = c < 'a';
    const ByteSet category = ByteSet::category(inverse ? static_cast<char>(c - 'A' + 'a') : c);
    set.add(inverse ? category.inverse() : category);
    return true;
  }

  /// The character given by a backslash and c, the first byte after it.
  unsigned parse_escaped(char c, bool in_class) {
    constexpr std::string_view letters = "abfnrtv";
    constexpr std::string_view meanings = "\a\b\f\n\r\t\v";
    if (const std::size_t found = letters.find(c); found != std::string_view::npos) {
      return static_cast<unsigned char>(meanings[found]);
    }
    if (c == 'x') return parse_hexadecimal(2);
    if (c == 'u') return parse_hexadecimal(4);
    if (c == 'U') return parse_hexadecimal(8);
    if (c >= '0' && c <= '9') return parse_octal(c, in_class);
    if ((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z')) fail("an escape of a letter that has no meaning here");
    return static_cast<unsigned char>(c);
  }

  unsigned parse_hexadecimal(int digits) {
    unsigned value = 0;
    for (int i = 0; i < digits; ++i) {
      constexpr std::string_view lower = "0123456789abcdef";
      const char c = take("an incomplete escape");
      const std::size_t digit = lower.find(c >= 'A' && c <= 'F' ? static_cast<char>(c - 'A' + 'a') : c);
      if (digit == std::string_view::npos) fail("an incomplete escape");
      value = value * 16 + static_cast<unsigned>(digit);
      if (value > 0x7F) fail("an escape beyond ASCII, which is not supported");
    }
    return value;
  }

  /// \0, \07, \012, \123; other numbers are back-references. In a class all digits are octal.
  unsigned parse_octal(char first, bool in_class) {
    const auto octal = [](char c) { return c >= '0' && c <= '7'; };
    const bool short_form = first == '0' || in_class;
    const bool three =
        position_ + 1 < pattern_.size() && octal(first) && octal(peek()) && octal(pattern_[position_ + 1]);
    if (!octal(first) || (!short_form && !three)) {
      fail(in_class ? "an escape of a digit that is not octal" : "a back-reference, which is not supported");
    }
    auto value = static_cast<unsigned>(first - '0');
    for (int more = 0; more < 2 && octal(peek()); ++more) value = value * 8 + static_cast<unsigned>(take("") - '0');
    if (value > 0x7F) fail("an escape beyond ASCII, which is not supported");
    return value;
  }

  /// After [ .
  int parse_class() {
    constexpr std::string_view open = "a class without ]";
    ByteSet set;
    const bool inverse = accept('^');
    for (bool first = true;; first = false) {
      char c = take(open);
      if (c == ']' && !first) return add_character(inverse ? set.inverse() : set);
      unsigned low = 0;
      const bool category = parse_member(c, set, low);
      if (!accept('-')) {
        if (!category) set.add(low, low);
        continue;
      }
      c = take(open);
      if (c == ']') {
        if (!category) set.add(low, low);
        set.add('-', '-');
        return add_character(inverse ? set.inverse() : set);
      }
      unsigned high = 0;
      if (parse_member(c, set, high) || category || high < low) fail("a range in a class that is none");
      set.add(low, high);
    }
  }

  /// A member of a class that begins with c: a category, which it adds to the set, or one character.
  bool parse_member(char c, ByteSet& set, unsigned& character) {
    const bool escaped = c == '\\';
    if (escaped) c = take("a class without ]");
    if (escaped && accept_category(c, set)) return true;
    if (static_cast<unsigned char>(c) >= 0x80) fail("a class with a character beyond ASCII, which is not supported");
    character = escaped ? parse_escaped(c, true) : static_cast<unsigned char>(c);
    return false;
  }

  // Machines

  int add_machine(int root) {
    const int first = build(root, arrived);
    machines_.push_back(first);
    return static_cast<int>(machines_.size()) - 1;
  }

  int add_state(Kind kind, int argument, int next) {
    if (states_.size() >= static_cast<std::size_t>(max_states)) fail_for_size();
    states_.push_back({kind, argument, next});
    return static_cast<int>(states_.size()) - 1;
  }

  /// Builds the states that read this node from right to left and continue with `next`; returns the first.
  int build(int index, int next) {
    if (++built_ > max_states) fail_for_size();
    const Node part = node(index);
    switch (part.kind) {
      case Kind::sequence:
        for (int child = part.child; child != none; child = node(child).sibling) next = build(child, next);
        return next;
      case Kind::alternatives: {
        int first = build(part.child, next);
        for (int child = node(part.child).sibling; child != none; child = node(child).sibling) {
          const int other = build(child, next);
          first = add_state(Kind::fork, other, first);
        }
        return first;
      }
      case Kind::repetition:
        return build_repetition(part, next);
      case Kind::look:
      case Kind::look_not:
        if (part.argument == none) {
          const int machine = add_machine(part.child);
          node(index).argument = machine;
        }
        return add_state(part.kind, node(index).argument, next);
      default:
        return add_state(part.kind, part.argument, next);
    }
  }

  int build_repetition(const Node& part, int next) {
    if (part.most == 0) return next;
    if (!node(part.child).consumes) return part.least == 0 ? next : build(part.child, next);
    int copies = part.least;
    if (part.most == unbounded) {
      const int fork = add_state(Kind::fork, none, next);
      const int again = build(part.child, fork);
      states_[static_cast<std::size_t>(fork)].argument = again;
      next = fork;
      if (copies > 0) {
        next = again;
        --copies;
      }
    } else {
      const int behind = next;
      for (int i = part.least; i < part.most; ++i) {
        const int once = build(part.child, next);
        next = add_state(Kind::fork, once, behind);
      }
    }
    for (int i = 0; i < copies; ++i) next = build(part.child, next);
    return next;
  }

  [[nodiscard]] static bool holds(Kind kind, std::basic_string_view<Char> text, std::size_t place) noexcept {
    const std::size_t size = text.size();
    switch (kind) {
      case Kind::text_begin:
        return place == 0;
      case Kind::text_end:
        return place == size || (place + 1 == size && text[place] == '\n');
      case Kind::very_end:
        return place == size;
      default: {
        if (size == 0) return false;  // in Python, neither \b nor \B matches in an empty text
        const ByteSet word = ByteSet::category('w');
        const bool left = place > 0 && word.contains(static_cast<unsigned char>(text[place - 1]));
        const bool right = place < size && word.contains(static_cast<unsigned char>(text[place]));
        return (left != right) == (kind == Kind::word_edge);
      }
    }
  }

  // Used only until the pattern is compiled.
  std::string_view operation_;
  std::string_view option_;
  std::basic_string_view<Char> pattern_;
  std::size_t position_ = 0;
  int built_ = 0;
  std::vector<Node> nodes_;
  std::vector<std::basic_string_view<Char>> group_names_;

  bool needs_ascii_ = false;
  std::vector<ByteSet> sets_;
  std::vector<State> states_;
  std::vector<Index> machines_;  // their first states: lookaheads (inner ones first), then the whole pattern
};

}  // namespace lora::detail
