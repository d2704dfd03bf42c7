# Doxygen reads the headers through this filter: it documents, for Doxygen alone, members that a concept or the language
# prescribes and that a header therefore does not describe again. A member with a comment of its own keeps it.
# Protected members are for the library's own derived classes and are left out.
function prescribed(line) {
  if (line ~ /^  using Scalar = /) return "The type of the numbers: float or double."
  if (line ~ /^  static constexpr .* name = /) return "Its name in messages and files; see NumberFormat."
  if (line ~ /^  static constexpr Index block_size/) return "Weights in a block; see NumberFormat."
  if (line ~ /^  static constexpr Index block_bytes/) return "Bytes of a block; see NumberFormat."
  if (line ~ /^  static (constexpr )?void decode\(/) return "Decodes one block; see NumberFormat."
  if (line ~ /^  static (constexpr )?void encode\(/) return "Encodes one block; see EncodableFormat."
  if (line ~ / out_features\(\) const noexcept/) return "Rows of W: elements of an output."
  if (line ~ / in_features\(\) const noexcept/) return "Columns of W: elements of an input."
  if (line ~ / bytes\(\) const noexcept/) return "Bytes of memory that this object owns or keeps."
  if (line ~ /^  void product(_transposed)?\(/) return "See FrozenWeight."
  if (line ~ /^  void read\(/) return "See ReadableWeight. @errors ShapeError"
  if (line ~ / (tile_count|writable)\(\) const/) return "See MergeableWeight."
  if (line ~ / tile\(Index t\)/) return "See MergeableWeight."
  if (line ~ /^  [A-Z][A-Za-z]*\(const [A-Za-z<>]+& ?(other|\/\*other\*\/)?\)/) return "Copies."
  if (line ~ /^  [A-Z][A-Za-z]*\([A-Za-z<>]+&& ?(other)?\)/) return "Moves."
  if (line ~ /^  [A-Z][A-Za-z<>]*& operator=\(/) return "Assigns."
  if (line ~ /^  using Error::Error;/) return "See Error."
  if (line ~ / operator==\(.*= default;/) return "Whether all members are equal."
  return ""
}

/^ protected:/ { sub(/protected/, "private") }
# The base of the optimisers is part of their interface.
FILENAME ~ /optim\/optimizer.hpp$/ { sub(/^namespace lora::detail/, "namespace lora") }
{ gsub(/detail::Optimizer/, "Optimizer") }
# A list of errors is a sentence; Doxygen's own command takes its first word for the only one.
{ gsub(/@throws/, "@errors") }
# Doxygen 1.9 takes constraints of functions for their return types.
{
  sub(/requires KindType::(template )?[a-z_]+(<Input>)? /, "")
  sub(/ requires (can_be_merged_into|MergeableWeight<Weight>|formats::EncodableFormat<Format>)/, "")
  sub(/ requires\(!std::is_const_v<Scalar>\)/, "")
  sub(/^ +requires (RealScalar<typename Derived::Scalar>)$/, "")
  sub(/^ +requires\(!.*\)$/, "")
  sub(/^  &&FrozenWeight<W> && .*\)$/, "")
}
{
  text = prescribed($0)
  documented = before ~ /^ *(\/\/\/|template|requires)/ || $0 ~ /\/\/\/</
  if ($0 !~ /^ *\/\/ /) before = $0
  # On the member's own line, so that line numbers stay.
  print (text != "" && !documented ? "/** " text " */ " : "") $0
}
