#include "pod/log_segments.hpp"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <ctime>

namespace godwit::pod {

namespace {

constexpr std::size_t segments_limit = 100'000;

}  // namespace

bool is_log_segment(std::string_view name) {
  return name.size() == 20 && std::ranges::all_of(name, [](char c) { return c >= '0' && c <= '9'; });
}

Result<std::vector<std::string>> log_segments(const std::string& directory) {
  std::vector<std::string> names;
  DIR* stream = opendir(directory.c_str());
  if (stream == nullptr) {
    if (errno == ENOENT) return names;
    return fail_errno("open {}", directory);
  }
  while (const dirent* entry = readdir(stream))
    if (is_log_segment(entry->d_name) && names.size() < segments_limit) names.emplace_back(entry->d_name);
  closedir(stream);
  std::ranges::sort(names);
  return names;
}

namespace {

/// Frames from `offset` on, as many as are whole and fit; false when the limit was reached.
Result<bool> read_segment(const std::string& path, std::uint64_t& offset, std::size_t& room, std::vector<Frame>& out) {
  const Fd file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!file) {
    if (errno == ENOENT) return true;
    return fail_errno("open {}", path);
  }
  for (;;) {
    std::uint8_t header[frame_header];
    const ssize_t got = pread(file.get(), header, sizeof header, static_cast<off_t>(offset));
    if (got < 0) return fail_errno("read {}", path);
    if (got < static_cast<ssize_t>(sizeof header)) return true;
    const std::size_t length = frame_length(header);
    if (length > frame_limit) return fail(ErrorKind::invalid, "{} is damaged at byte {}", path, offset);
    if (length > room && !out.empty()) return false;
    Frame frame{static_cast<FrameKind>(header[0]), Bytes(length)};
    const ssize_t body = pread(file.get(), frame.bytes.data(), length, static_cast<off_t>(offset + frame_header));
    if (body < 0) return fail_errno("read {}", path);
    if (static_cast<std::size_t>(body) < length) return true;
    out.push_back(std::move(frame));
    offset += frame_header + length;
    room -= std::min(room, length);
  }
}

}  // namespace

Result<std::vector<Frame>> read_log(const std::string& directory, LogPosition& position, std::size_t limit) {
  std::vector<Frame> frames;
  for (const std::string& segment : TRY(log_segments(directory))) {
    if (segment < position.segment) continue;
    if (segment > position.segment) position = {segment, 0};
    if (!TRY(read_segment(directory + "/" + segment, position.offset, limit, frames))) break;
  }
  return frames;
}

bool LogWriter::open_segment() {
  if (file_) return true;
  timespec time{};
  clock_gettime(CLOCK_MONOTONIC, &time);
  // The next free name: never one that was written before.
  auto stamp = static_cast<std::uint64_t>(time.tv_sec) * 1'000'000'000 + static_cast<std::uint64_t>(time.tv_nsec);
  for (int attempt = 0; attempt < 100; ++attempt, ++stamp) {
    const std::string name = fmt::format("{:020}", stamp);
    file_.reset(openat(directory_.get(), name.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_APPEND | O_CLOEXEC, 0600));
    if (file_) {
      segment_ = name;
      size_ = 0;
      return true;
    }
    if (errno != EEXIST) return false;
  }
  return false;
}

bool LogWriter::write_frame(FrameKind kind, BytesView bytes) {
  if (!open_segment()) return false;
  Bytes frame;
  frame.reserve(frame_header + bytes.size());
  append_frame(frame, kind, bytes);
  const ssize_t written = ::write(file_.get(), frame.data(), frame.size());
  if (written == static_cast<ssize_t>(frame.size())) {
    size_ += frame.size();
    return true;
  }
  // Half a frame would make all that follows unreadable.
  if (written > 0 && ftruncate(file_.get(), static_cast<off_t>(size_)) != 0) file_.reset();
  return false;
}

void LogWriter::append(FrameKind kind, BytesView bytes) {
  if (not_said_ > 0) {
    Bytes count(8);
    for (int i = 0; i < 8; ++i) count[i] = not_said_ >> 8 * i & 0xff;
    if (write_frame(FrameKind::lost, count)) not_said_ = 0;
  }
  for (std::size_t begin = 0; begin < bytes.size(); begin += frame_limit) {
    const auto part = bytes.subspan(begin, std::min(frame_limit, bytes.size() - begin));
    if (not_said_ == 0 && write_frame(kind, part)) continue;
    lost_ += part.size();
    not_said_ += part.size();
  }
}

}  // namespace godwit::pod
