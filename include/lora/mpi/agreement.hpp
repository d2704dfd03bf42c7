// SPDX-License-Identifier: MIT
// Checks that all ranks have the same configuration; if not, all of them fail together.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "lora/core/error.hpp"
#include "lora/mpi/communicator.hpp"

namespace lora::mpi {

/// A named value that must be the same on every rank: "config", its JSON; "seed", "42"; "shapes", ...
struct Agreed {
  std::string name;   ///< in error messages
  std::string value;  ///< must be the same on every rank
};

namespace detail {

/// The text of rank `root`, on every rank.
[[nodiscard]] inline std::string broadcast_text(const Communicator& ranks, std::string_view text, int root) {
  auto size = static_cast<std::uint64_t>(text.size());
  ranks.complete("MPI_Ibcast", [&](MPI_Request* request) {
    return MPI_Ibcast(&size, 1, MPI_UINT64_T, root, ranks.handle(), request);
  });
  std::string result(text);
  result.resize(static_cast<std::size_t>(size));
  const int count = checked_count("lora::mpi::broadcast_text", size);
  ranks.complete("MPI_Ibcast", [&](MPI_Request* request) {
    return MPI_Ibcast(result.data(), count, MPI_CHAR, root, ranks.handle(), request);
  });
  return result;
}

/// The first rank whose `here` is true, or -1.
[[nodiscard]] inline int first_rank_where(const Communicator& ranks, bool here) {
  const int mine = here ? ranks.rank() : ranks.size();
  int first = 0;
  ranks.complete("MPI_Iallreduce", [&](MPI_Request* request) {
    return MPI_Iallreduce(&mine, &first, 1, MPI_INT, MPI_MIN, ranks.handle(), request);
  });
  return first == ranks.size() ? -1 : first;
}

/// At most 80 bytes of `text` around the byte at `position`, quoted.
[[nodiscard]] inline std::string excerpt(std::string_view text, std::size_t position) {
  constexpr std::size_t length = 80;
  if (text.size() <= length) return std::string("'").append(text).append("'");
  const std::size_t begin = std::min(position - std::min(position, length / 2), text.size() - length);
  std::string result = begin > 0 ? "'..." : "'";
  result.append(text.substr(begin, length));
  return result.append(begin + length < text.size() ? "...'" : "'");
}

/// "2 names: 4 seed, 6 config": every name behind its length, so that different lists read differently.
[[nodiscard]] inline std::string names_text(std::span<const Agreed> all) {
  std::string text = std::to_string(all.size()).append(" names:");
  for (const auto& one : all) {
    text.append(&one == all.data() ? " " : ", ").append(std::to_string(one.name.size())).append(" ").append(one.name);
  }
  return text;
}

}  // namespace detail

/// Compares `value` byte by byte with that of rank 0. Collective. If a rank differs, every rank throws the same error,
/// with `name`, rank 0's value, the first rank that differs, and its value; long values are cut to the part where they
/// differ. Sends the value once from rank 0 to all.
/// @throws ConfigError on every rank or on none; MpiError
inline void require_agreement(const Communicator& ranks, std::string_view name, std::string_view value) {
  const std::string expected = detail::broadcast_text(ranks, value, 0);
  const int other = detail::first_rank_where(ranks, expected != value);
  if (other < 0) return;
  const std::string got = detail::broadcast_text(ranks, value, other);
  const auto part = std::ranges::mismatch(expected, got).in1 - expected.begin();
  const auto position = static_cast<std::size_t>(part);
  std::string text = detail::excerpt(got, position);
  text.append(" on rank ").append(std::to_string(other));
  throw ConfigError("lora::mpi::require_agreement", name, detail::excerpt(expected, position) + " as on rank 0", text);
}

/// The same for several values, in order, after checking that the ranks agree on the names.
inline void require_agreement(const Communicator& ranks, std::span<const Agreed> all) {
  require_agreement(ranks, "names of what is agreed on", detail::names_text(all));
  for (const auto& one : all) require_agreement(ranks, one.name, one.value);
}
/// The same for a list.
inline void require_agreement(const Communicator& ranks, std::initializer_list<Agreed> all) {
  require_agreement(ranks, std::span<const Agreed>(all.begin(), all.size()));
}

}  // namespace lora::mpi
