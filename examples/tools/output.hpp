// SPDX-License-Identifier: MIT
// Where a command writes: beside the target first, and in its place only when all of it is there.
#pragma once

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <sys/file.h>
#include <sys/stat.h>
#include <system_error>
#include <utility>
#include <vector>

#include "lora/core/error.hpp"
#include "lora/io/atomic_file.hpp"
#include "lora/io/file_descriptor.hpp"
#include "lora/io/mapped_file.hpp"
#include "lora/io/text.hpp"

namespace lora::tools {

/// Writes a copy of a regular file, whole or not at all. @throws IoError
inline void write_copy(const std::filesystem::path& from, const std::filesystem::path& to) {
  const MappedFile source(from);
  AtomicFile target(to);
  target.write(source.bytes());
  target.commit();
}

namespace detail {

/// Removes a folder with all that is in it, also from folders in it that may not be written.
inline void remove_tree(const std::filesystem::path& path) {
  std::error_code error;
  if (std::filesystem::is_directory(std::filesystem::symlink_status(path, error))) {
    std::filesystem::permissions(path, std::filesystem::perms::owner_all, std::filesystem::perm_options::add, error);
    std::vector<std::filesystem::path> found;
    std::filesystem::directory_iterator entry(path, error);
    for (const std::filesystem::directory_iterator end; !error && entry != end; entry.increment(error)) {
      if (entry->symlink_status(error).type() == std::filesystem::file_type::directory) found.push_back(entry->path());
    }
    for (const auto& folder : found) remove_tree(folder);
  }
  std::filesystem::remove_all(path, error);
}

/// A folder of one run beside its target:
///   lock         locked while the run lives
///   new          what the run writes; after an exchange, what was there before
///   old/<name>   what was there before, where the system cannot exchange two folders in one step
/// and, while `new` is a file that is being written, its temporary file.
/// A folder without its lock held is left over from a run that was killed. If old/<name> is there and <name> is not,
/// the run died between its two renames, and `new` is complete.
class Staging {
 public:
  /// @throws IoError
  explicit Staging(const std::filesystem::path& parent) {
    constexpr int turns = 100;
    for (int turn = 0; turn < turns && !lock_.open(); ++turn) create(parent);
    if (!lock_.open()) throw IoError("output", in_quotes(parent.native()), "to lock a new folder in it", "no success");
  }
  Staging(Staging&& other) noexcept
      : folder_(std::exchange(other.folder_, {})), lock_(std::exchange(other.lock_, FileDescriptor())) {}
  Staging(const Staging&) = delete;
  Staging& operator=(const Staging&) = delete;
  ~Staging() { remove(); }

  [[nodiscard]] std::filesystem::path fresh() const { return folder_ / "new"; }
  [[nodiscard]] std::filesystem::path old() const { return folder_ / "old"; }

  /// Completes or takes back what killed runs left in `parent`, and removes the rest of it.
  static void clean_up(const std::filesystem::path& parent) {
    std::error_code error;
    std::vector<std::filesystem::path> found;
    std::filesystem::directory_iterator entry(parent, error);
    for (const std::filesystem::directory_iterator end; !error && entry != end; entry.increment(error)) {
      if (entry->path().filename().native().starts_with(prefix)) found.push_back(entry->path());
    }
    for (const auto& folder : found) {
      struct stat status {};
      const bool own = ::lstat(folder.c_str(), &status) == 0 && S_ISDIR(status.st_mode) && status.st_uid == ::geteuid();
      if (own) static_cast<void>(taken_over(folder));
    }
  }

 private:
  static constexpr std::string_view prefix = ".lora-new-";

  Staging() = default;

  void create(const std::filesystem::path& parent) {
    std::string name = (parent / prefix).native() + "XXXXXX";
    if (::mkdtemp(name.data()) == nullptr) throw_io_error("output", parent, "to create a folder in it", errno);
    folder_ = name;
    FileDescriptor lock(::open((folder_ / "lock").c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
    if (!lock.open() && errno != ENOENT) {
      const int error_number = errno;
      ::rmdir(folder_.c_str());
      throw_io_error("output", folder_, "to create a file in it", error_number);
    }
    // Another run may have taken the folder for a leftover before it was locked. Where nothing can be locked, no run
    // takes a folder for one.
    const bool taken = lock.open() && ::flock(lock.get(), LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK;
    if (lock.open() && !taken && is_linked(lock)) lock_ = std::move(lock);
  }

  [[nodiscard]] static bool is_linked(const FileDescriptor& file) {
    struct stat status {};
    return ::fstat(file.get(), &status) == 0 && status.st_nlink > 0;
  }

  /// Owns a leftover, or nothing if its run lives.
  [[nodiscard]] static Staging taken_over(const std::filesystem::path& folder) {
    Staging left;
    FileDescriptor lock(::open((folder / "lock").c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW));
    if (!lock.open() && errno == ENOENT) ::rmdir(folder.c_str());
    if (lock.open() && ::flock(lock.get(), LOCK_EX | LOCK_NB) == 0 && is_linked(lock)) {
      left.folder_ = folder;
      left.lock_ = std::move(lock);
    }
    return left;
  }

  /// Whether nothing in the folder is needed any more: puts `new` in the place that `old/<name>` has left empty.
  [[nodiscard]] bool settled() const {
    std::error_code error;
    const std::filesystem::directory_iterator entry(old(), error);
    if (error || entry == std::filesystem::directory_iterator()) return true;
    const auto target = folder_.parent_path() / entry->path().filename();
    if (std::filesystem::exists(std::filesystem::symlink_status(target, error))) return true;
    return std::rename(fresh().c_str(), target.c_str()) == 0;
  }

  /// @throws std::filesystem::filesystem_error
  [[nodiscard]] std::vector<std::filesystem::path> all_but_the_lock() const {
    std::vector<std::filesystem::path> found;
    for (const auto& entry : std::filesystem::directory_iterator(folder_)) {
      if (entry.path().filename() != "lock") found.push_back(entry.path());
    }
    return found;
  }

  void remove() noexcept {
    if (folder_.empty() || !lock_.open()) return;
    std::error_code ignored;
    try {
      if (!settled()) return;
      for (const auto& path : all_but_the_lock()) remove_tree(path);
      // The lock goes last: without it the rest would no longer be known as a leftover.
      if (!all_but_the_lock().empty()) return;
      std::filesystem::remove(folder_ / "lock", ignored);
      std::filesystem::remove(folder_, ignored);
    } catch (const std::exception&) {
      return;  // the next run cleans up
    }
  }

  std::filesystem::path folder_;
  FileDescriptor lock_;
};

inline void sync_folder(const std::filesystem::path& folder) {
  const FileDescriptor directory(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (directory.open()) static_cast<void>(::fsync(directory.get()));
}

/// The path without links, "." and ".." in its folders, as the system reads them; a link at its end stays. If it is to
/// be that of a folder, it has no slash at its end. @throws IoError
[[nodiscard]] inline std::filesystem::path with_real_folders(const std::filesystem::path& path, bool of_folder) {
  std::error_code error;
  auto whole = std::filesystem::absolute(path, error);
  if (of_folder && whole.filename().empty()) whole = whole.parent_path();
  const auto name = whole.filename();
  const bool moves = name == "." || name == "..";
  const auto folder = std::filesystem::weakly_canonical(moves ? whole : whole.parent_path(), error);
  if (error) throw_io_error("output", path, "a path whose folders can be read", error.value());
  if (!moves) return folder / name;
  // What is not there yet is made normal with a slash at its end.
  return of_folder && folder.filename().empty() ? folder.parent_path() : folder;
}

/// Whether the error says that the system cannot rename in this way.
[[nodiscard]] inline bool cannot_rename_so(int error_number) {
  return error_number == EINVAL || error_number == ENOSYS || error_number == EOPNOTSUPP || error_number == EPERM;
}

enum class Renaming { into_free_place, exchange };

/// False with errno ENOSYS where the system has no such call.
[[nodiscard]] inline bool rename_as(Renaming how, const std::filesystem::path& from, const std::filesystem::path& to) {
#if defined(RENAME_EXCHANGE) && defined(RENAME_NOREPLACE)
  const unsigned flags = how == Renaming::exchange ? RENAME_EXCHANGE : RENAME_NOREPLACE;
  return ::renameat2(AT_FDCWD, from.c_str(), AT_FDCWD, to.c_str(), flags) == 0;
#else
  static_cast<void>(how), static_cast<void>(from), static_cast<void>(to);
  errno = ENOSYS;
  return false;
#endif
}

/// Gives `to` the entry `from`: files share their data, links are made anew, folders are walked.
inline void carry(const std::filesystem::path& from, const std::filesystem::path& to) {
  std::error_code error;
  const auto status = std::filesystem::symlink_status(from, error);
  if (is_symlink(status)) {
    std::filesystem::copy_symlink(from, to, error);
  } else if (is_directory(status)) {
    std::filesystem::create_directory(to, error);
    std::vector<std::filesystem::path> names;
    std::filesystem::directory_iterator entry(from, error);
    for (const std::filesystem::directory_iterator end; !error && entry != end; entry.increment(error)) {
      names.push_back(entry->path().filename());
    }
    for (std::size_t i = 0; !error && i < names.size(); ++i) carry(from / names[i], to / names[i]);
    // Last: a folder that may not be written cannot be filled.
    if (!error) std::filesystem::permissions(to, status.permissions(), error);
  } else if (is_regular_file(status)) {
    std::filesystem::create_hard_link(from, to, error);
    if (error) {
      write_copy(from, to);
      std::filesystem::permissions(to, status.permissions() & std::filesystem::perms::all, error);
    }
  } else {
    throw IoError("output", in_quotes(from.native()), "files, folders and links, to keep them", "something else");
  }
  if (error) throw_io_error("output", from, "to keep it beside what is written", error.value());
}

}  // namespace detail

/// A file or folder that a command writes. It is written to path(), beside the target; commit() puts it in the target's
/// place in one step. Until then, and after any error, the target is as it was, and nothing is left beside it. What a
/// killed run has left is removed by the next one.
class Output {
 public:
  enum class Kind { file, folder };
  /// Whether an entry of a folder belongs to what is replaced. All other entries stay.
  using Belongs = bool (*)(std::string_view name);

  /// @throws ConfigError when something is at `target` without `force`, or another kind of thing, or a folder that
  /// holds other things only; IoError
  Output(const std::filesystem::path& target, Kind kind, bool force, Belongs belongs = nullptr)
      : target_(resolved(target, kind)), belongs_(belongs), staging_(staging_for(target_)) {
    std::error_code ignored;
    const auto status = std::filesystem::symlink_status(target_, ignored);
    replaces_ = std::filesystem::exists(status);
    if (replaces_ && !force) refuse("a path where nothing is (--force overwrites)", "a file or folder");
    if (replaces_ && kind == Kind::folder && !is_directory(status)) refuse("a path for a folder", "a file");
    if (replaces_ && kind == Kind::file && !is_regular_file(status) && !is_symlink(status)) {
      refuse("a path for a file", "a folder or device");
    }
    if (replaces_ && kind == Kind::folder) require_replaceable();
    path_ = (staging_.fresh() / target_.lexically_relative(unit())).lexically_normal();
    if (path_.filename().empty()) path_ = path_.parent_path();
    std::error_code error;
    std::filesystem::create_directories(kind == Kind::folder ? path_ : path_.parent_path(), error);
    if (error) throw_io_error("output", target_, "to create a folder beside it", error.value());
  }

  /// Where to write: a file to create, or an empty folder.
  [[nodiscard]] const std::filesystem::path& path() const noexcept { return path_; }
  [[nodiscard]] const std::filesystem::path& target() const noexcept { return target_; }

  /// Must be the last call. @throws IoError; the target is as it was then
  void commit() {
    const auto from = staging_.fresh();
    if (replaces_) keep_the_rest();
    if (is_folder(path_)) detail::sync_folder(path_);
    if (!replaces_) {
      put_in_free_place(from);
    } else if (!is_folder(path_)) {
      if (std::rename(from.c_str(), target_.c_str()) != 0) fail();
    } else if (!detail::rename_as(detail::Renaming::exchange, from, target_)) {
      if (!detail::cannot_rename_so(errno)) fail();
      exchange_by_steps(from);
    }
    detail::sync_folder(unit().parent_path());
  }

 private:
  static std::filesystem::path resolved(const std::filesystem::path& target, Kind kind) {
    std::error_code error;
    const auto path = detail::with_real_folders(target, kind == Kind::folder);
    if (path.filename().empty() || path == path.root_path()) {
      throw ConfigError("output", in_quotes(target.native()), "the path of a file or folder", "another");
    }
    // A link to a folder stays: what it points to is replaced.
    if (kind == Kind::folder && std::filesystem::is_directory(path, error)) {
      const auto real = std::filesystem::canonical(path, error);
      if (!error) return real;
    }
    return path;
  }

  // What is renamed: the target, or the first of its folders that does not exist.
  [[nodiscard]] static std::filesystem::path first_missing(const std::filesystem::path& target) {
    std::error_code ignored;
    auto unit = target;
    while (unit.has_parent_path() && unit.parent_path() != unit &&
           !std::filesystem::exists(std::filesystem::symlink_status(unit.parent_path(), ignored))) {
      unit = unit.parent_path();
    }
    return unit;
  }
  [[nodiscard]] std::filesystem::path unit() const { return replaces_ ? target_ : first_missing(target_); }

  static detail::Staging staging_for(const std::filesystem::path& target) {
    const auto parent = first_missing(target).parent_path();
    detail::Staging::clean_up(parent);
    return detail::Staging(parent);
  }

  [[nodiscard]] static bool is_folder(const std::filesystem::path& path) {
    std::error_code ignored;
    return std::filesystem::is_directory(path, ignored);
  }

  [[noreturn]] void refuse(std::string_view expected, std::string_view got) const {
    throw ConfigError("output", in_quotes(target_.native(), target_.native().size()), expected, got);
  }
  [[noreturn]] void fail() const { throw_io_error("output", target_, "to put what was written in its place", errno); }

  [[nodiscard]] std::vector<std::filesystem::path> entries() const {
    std::error_code error;
    std::vector<std::filesystem::path> names;
    std::filesystem::directory_iterator entry(target_, error);
    for (const std::filesystem::directory_iterator end; !error && entry != end; entry.increment(error)) {
      names.push_back(entry->path().filename());
    }
    if (error) throw_io_error("output", target_, "a readable folder", error.value());
    return names;
  }

  void require_replaceable() const {
    const auto names = entries();
    const auto belongs = [&](const auto& name) { return belongs_ != nullptr && belongs_(name.native()); };
    if (names.empty() || std::any_of(names.begin(), names.end(), belongs)) return;
    refuse("a folder that is empty or holds what --force may overwrite", "a folder of other things");
  }

  /// A new file may be read by those who could read the old one.
  static void keep_mode(const std::filesystem::path& from, const std::filesystem::path& to) {
    struct stat old {};
    struct stat fresh {};
    const bool both = ::lstat(from.c_str(), &old) == 0 && ::lstat(to.c_str(), &fresh) == 0;
    if (!both || !S_ISREG(old.st_mode) || !S_ISREG(fresh.st_mode)) return;
    if (::chmod(to.c_str(), old.st_mode & 0777U) != 0) {
      throw_io_error("output", from, "to give the new file the old one's permissions", errno);
    }
  }

  void keep_the_rest() const {
    struct stat status {};
    if (::stat(target_.c_str(), &status) == 0) static_cast<void>(::chmod(path_.c_str(), status.st_mode & 0777U));
    if (!is_folder(path_)) return;
    std::error_code ignored;
    for (const auto& name : entries()) {
      keep_mode(target_ / name, path_ / name);
      if (belongs_(name.native())) continue;
      if (std::filesystem::exists(std::filesystem::symlink_status(path_ / name, ignored))) continue;
      detail::carry(target_ / name, path_ / name);
    }
  }

  void put_in_free_place(const std::filesystem::path& from) const {
    const auto to = unit();
    if (detail::rename_as(detail::Renaming::into_free_place, from, to)) return;
    if (!detail::cannot_rename_so(errno) && errno != EEXIST) fail();
    std::error_code ignored;
    if (std::filesystem::exists(std::filesystem::symlink_status(to, ignored))) {
      refuse("a path where nothing is (--force overwrites)", "what another program has written meanwhile");
    }
    if (std::rename(from.c_str(), to.c_str()) != 0) fail();
  }

  void exchange_by_steps(const std::filesystem::path& from) const {
    const auto kept = staging_.old() / target_.filename();
    if (::mkdir(staging_.old().c_str(), 0700) != 0) fail();
    detail::sync_folder(from.parent_path());
    if (std::rename(target_.c_str(), kept.c_str()) != 0) fail();
    if (std::rename(from.c_str(), target_.c_str()) == 0) return;
    const int error_number = errno;
    std::rename(kept.c_str(), target_.c_str());
    errno = error_number;
    fail();
  }

  std::filesystem::path target_;
  Belongs belongs_;
  detail::Staging staging_;
  std::filesystem::path path_;
  bool replaces_ = false;
};

/// Whether there is something to read at `path`, after completing what a killed run may have left of it.
[[nodiscard]] inline bool exists_to_read(const std::filesystem::path& path) {
  std::error_code error;
  if (std::filesystem::exists(path, error)) return true;
  auto parent = std::filesystem::weakly_canonical(std::filesystem::absolute(path, error).parent_path(), error);
  while (parent.has_parent_path() && parent.parent_path() != parent && !std::filesystem::exists(parent, error)) {
    parent = parent.parent_path();
  }
  detail::Staging::clean_up(parent);
  return std::filesystem::exists(path, error);
}

}  // namespace lora::tools
