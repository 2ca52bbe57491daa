#include "kernel/kernel_state.hpp"

#include <arpa/inet.h>
#include <fcntl.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <random>
#include <utility>

#include "kernel/memory_reader.hpp"

namespace godwit::kernel {
namespace {

constexpr std::size_t connections_limit = 65'536, pieces_limit = 1 << 20, bytes_limit = 64 * MiB;
constexpr std::uint64_t gigabyte = 1ull << 30;

/// Where what is needed stands in the running kernel's structs.
struct Offsets {
  std::size_t files, fdt, fd, private_data, sk, receive_queue, skb_sk, skb_len, skb_data_len, skb_head, skb_data,
      skb_end, skb_cb, nr_frags, frag_list, frags, frag_page, frag_len, frag_offset, frag_size, unix_fp, accept_queue,
      accept_head, request_next, request_sk, remote_port, local_port, received_to, read_to, pipe_buffers, buffer_page,
      buffer_offset, page_size, unix_read, unix_address, address_length, address_name, socket_flags, file_inode,
      inode_private, pid_tasks, task_pids, task_signal, timers, timer_list, timer_id, timer_overrun;
};

Result<Offsets> read_offsets() {
  const Layouts l = TRY(Layouts::read());
  auto frag_page = l.offset("skb_frag", "netmem");
  const char* frag = frag_page ? "skb_frag" : "bio_vec";  // before Linux 6.8
  if (!frag_page) frag_page = l.offset(frag, "bv_page");
  return Offsets{.files = TRY(l.offset("task_struct", "files")),
                 .fdt = TRY(l.offset("files_struct", "fdt")),
                 .fd = TRY(l.offset("fdtable", "fd")),
                 .private_data = TRY(l.offset("file", "private_data")),
                 .sk = TRY(l.offset("socket", "sk")),
                 .receive_queue = TRY(l.offset("sock", "sk_receive_queue")),
                 .skb_sk = TRY(l.offset("sk_buff", "sk")),
                 .skb_len = TRY(l.offset("sk_buff", "len")),
                 .skb_data_len = TRY(l.offset("sk_buff", "data_len")),
                 .skb_head = TRY(l.offset("sk_buff", "head")),
                 .skb_data = TRY(l.offset("sk_buff", "data")),
                 .skb_end = TRY(l.offset("sk_buff", "end")),
                 .skb_cb = TRY(l.offset("sk_buff", "cb")),
                 .nr_frags = TRY(l.offset("skb_shared_info", "nr_frags")),
                 .frag_list = TRY(l.offset("skb_shared_info", "frag_list")),
                 .frags = TRY(l.offset("skb_shared_info", "frags")),
                 .frag_page = TRY(std::move(frag_page)),
                 .frag_len = TRY(l.offset(frag, frag[0] == 's' ? "len" : "bv_len")),
                 .frag_offset = TRY(l.offset(frag, frag[0] == 's' ? "offset" : "bv_offset")),
                 .frag_size = TRY(l.size(frag)),
                 .unix_fp = TRY(l.offset("unix_skb_parms", "fp")),
                 .accept_queue = TRY(l.offset("inet_connection_sock", "icsk_accept_queue")),
                 .accept_head = TRY(l.offset("request_sock_queue", "rskq_accept_head")),
                 .request_next = TRY(l.offset("request_sock", "dl_next")),
                 .request_sk = TRY(l.offset("request_sock", "sk")),
                 .remote_port = TRY(l.offset("sock_common", "skc_dport")),
                 .local_port = TRY(l.offset("sock_common", "skc_num")),
                 .received_to = TRY(l.offset("tcp_sock", "rcv_nxt")),
                 .read_to = TRY(l.offset("tcp_sock", "copied_seq")),
                 .pipe_buffers = TRY(l.offset("pipe_inode_info", "bufs")),
                 .buffer_page = TRY(l.offset("pipe_buffer", "page")),
                 .buffer_offset = TRY(l.offset("pipe_buffer", "offset")),
                 .page_size = TRY(l.size("page")),
                 .unix_read = TRY(l.offset("unix_skb_parms", "consumed")),
                 .unix_address = TRY(l.offset("unix_sock", "addr")),
                 .address_length = TRY(l.offset("unix_address", "len")),
                 .address_name = TRY(l.offset("unix_address", "name")),
                 .socket_flags = TRY(l.offset("sock_common", "skc_flags")),
                 .file_inode = TRY(l.offset("file", "f_inode")),
                 .inode_private = TRY(l.offset("inode", "i_private")),
                 .pid_tasks = TRY(l.offset("pid", "tasks")),
                 .task_pids = TRY(l.offset("task_struct", "pid_links")),
                 .task_signal = TRY(l.offset("task_struct", "signal")),
                 .timers = TRY(l.offset("signal_struct", "posix_timers")),
                 .timer_list = TRY(l.offset("k_itimer", "list")),
                 .timer_id = TRY(l.offset("k_itimer", "it_id")),
                 .timer_overrun = TRY(l.offset("k_itimer", "it_overrun"))};
}

/// The kernel's structs, read from their begin at one of our own descriptors.
class Walker {
 public:
  static Result<std::unique_ptr<Walker>> open() {
    const auto offsets = TRY(read_offsets());
    return std::unique_ptr<Walker>(new Walker(offsets, TRY(MemoryReader::open())));
  }

  /// struct file of a descriptor of the calling thread's.
  Result<std::uint64_t> file(int fd) {
    const auto files = TRY(pointer(TRY(memory_.current_task()) + at_.files));
    const auto table = TRY(pointer(TRY(pointer(files + at_.fdt)) + at_.fd));
    return pointer(table + 8 * static_cast<std::uint64_t>(fd));
  }
  Result<std::uint64_t> private_data(int fd) { return pointer(TRY(file(fd)) + at_.private_data); }

  Result<std::vector<PendingConnection>> unix_queue(int fd) {
    const auto listener = TRY(pointer(TRY(private_data(fd)) + at_.sk));
    std::vector<PendingConnection> queue;
    for (const auto request : TRY(buffers(listener))) {
      auto& connection = queue.emplace_back();
      const auto socket = TRY(pointer(request + at_.skb_sk));
      for (const auto buffer : TRY(buffers(socket))) {
        if (TRY(pointer(buffer + at_.skb_cb + at_.unix_fp)) != 0) connection.descriptors = true;
        connection.received.push_back(TRY(content(buffer)));
      }
    }
    return queue;
  }

  Result<std::vector<PendingConnection>> tcp_queue(int fd) {
    const auto listener = TRY(pointer(TRY(private_data(fd)) + at_.sk));
    std::vector<PendingConnection> queue;
    auto request = TRY(pointer(listener + at_.accept_queue + at_.accept_head));
    for (; request != 0; request = TRY(pointer(request + at_.request_next))) {
      if (queue.size() == connections_limit) return fail(ErrorKind::failed, "an accept queue has no end");
      const auto socket = TRY(pointer(request + at_.request_sk));
      auto& connection = queue.emplace_back();
      connection.local_port = TRY(memory_.get<std::uint16_t>(socket + at_.local_port));
      connection.remote_port = ntohs(TRY(memory_.get<std::uint16_t>(socket + at_.remote_port)));
      connection.received_to = TRY(memory_.get<std::uint32_t>(socket + at_.received_to));
      connection.received.push_back(TRY(stream(socket)));
    }
    return queue;
  }

  Result<std::vector<StreamPiece>> stream_pieces(int fd) {
    const auto socket = TRY(pointer(TRY(private_data(fd)) + at_.sk));
    std::vector<StreamPiece> pieces;
    for (const auto buffer : TRY(buffers(socket)))
      pieces.push_back({TRY(memory_.get<std::uint32_t>(buffer + at_.skb_len)),
                        TRY(memory_.get<std::uint32_t>(buffer + at_.skb_cb + at_.unix_read))});
    return pieces;
  }

  Result<std::vector<UnixMessage>> messages(int fd) {
    const auto socket = TRY(pointer(TRY(private_data(fd)) + at_.sk));
    std::vector<UnixMessage> found;
    for (const auto buffer : TRY(buffers(socket)))
      found.push_back(
          {TRY(memory_.get<std::uint32_t>(buffer + at_.skb_len)), TRY(unix_name(TRY(pointer(buffer + at_.skb_sk))))});
    return found;
  }

  Result<bool> has_ended(int fd) {
    constexpr unsigned flag_done = 1;  // enum sock_flags: SOCK_DONE
    const auto socket = TRY(pointer(TRY(private_data(fd)) + at_.sk));
    return (TRY(pointer(socket + at_.socket_flags)) >> flag_done & 1) != 0;
  }

  Result<std::map<std::int32_t, std::int64_t>> overruns(int pidfd) {
    // Of a pidfd (Linux 6.9), i_private is its struct pid; the first of its lists is that of the one task that has it.
    const auto pid = TRY(pointer(TRY(pointer(TRY(file(pidfd)) + at_.file_inode)) + at_.inode_private));
    const auto link = TRY(pointer(pid + at_.pid_tasks));
    if (link == 0) return fail(ErrorKind::gone, "the process has ended");
    const auto signals = TRY(pointer(link - at_.task_pids + at_.task_signal));
    std::map<std::int32_t, std::int64_t> found;
    for (auto node = TRY(pointer(signals + at_.timers)); node != 0; node = TRY(pointer(node))) {
      if (found.size() == pieces_limit) return fail(ErrorKind::failed, "a list of timers has no end");
      const auto timer = node - at_.timer_list;
      found[TRY(memory_.get<std::int32_t>(timer + at_.timer_id))] =
          TRY(memory_.get<std::int64_t>(timer + at_.timer_overrun));
    }
    return found;
  }

 private:
  Walker(const Offsets& offsets, MemoryReader memory) : at_(offsets), memory_(std::move(memory)) {}

  Result<std::uint64_t> pointer(std::uint64_t address) { return memory_.get<std::uint64_t>(address); }

  /// A list of sk_buffs begins and goes on with `next`, and ends where it began.
  Result<std::vector<std::uint64_t>> buffers(std::uint64_t socket) {
    const auto head = socket + at_.receive_queue;
    std::vector<std::uint64_t> list;
    for (auto each = TRY(pointer(head)); each != head; each = TRY(pointer(each))) {
      if (list.size() == pieces_limit) return fail(ErrorKind::failed, "a socket's queue has no end");
      list.push_back(each);
    }
    return list;
  }

  Result<Bytes> unix_name(std::uint64_t socket) {
    const auto address = socket == 0 ? 0 : TRY(pointer(socket + at_.unix_address));
    if (address == 0) return Bytes();
    const auto length = TRY(memory_.get<std::uint32_t>(address + at_.address_length));
    if (length > sizeof(sockaddr_un)) return fail(ErrorKind::failed, "a Unix socket with a name of {} bytes", length);
    constexpr std::size_t family = offsetof(sockaddr_un, sun_path);
    Bytes name(std::max<std::size_t>(length, family) - family);
    TRY(memory_.read(address + at_.address_name + family, name.data(), name.size()));
    // Paths come with a zero at their end; abstract names begin with one.
    if (!name.empty() && name.front() != 0) name.resize(::strnlen(reinterpret_cast<char*>(name.data()), name.size()));
    return name;
  }

  Result<Bytes> content(std::uint64_t buffer) {
    const auto length = TRY(memory_.get<std::uint32_t>(buffer + at_.skb_len));
    const auto in_pages = TRY(memory_.get<std::uint32_t>(buffer + at_.skb_data_len));
    if (length > bytes_limit || in_pages > length) return fail(ErrorKind::failed, "a buffer of {} bytes", length);
    Bytes bytes(length);
    std::size_t filled = length - in_pages;
    TRY(memory_.read(TRY(pointer(buffer + at_.skb_data)), bytes.data(), filled));
    if (in_pages == 0) return bytes;
    const auto shared = TRY(pointer(buffer + at_.skb_head)) + TRY(memory_.get<std::uint32_t>(buffer + at_.skb_end));
    const auto count = TRY(memory_.get<std::uint8_t>(shared + at_.nr_frags));
    for (std::size_t i = 0; i < count; ++i) {
      const auto frag = shared + at_.frags + i * at_.frag_size;
      const auto page = TRY(pointer(frag + at_.frag_page));
      const auto size = TRY(memory_.get<std::uint32_t>(frag + at_.frag_len));
      const auto offset = TRY(memory_.get<std::uint32_t>(frag + at_.frag_offset));
      if (size > bytes.size() - filled) return fail(ErrorKind::failed, "a buffer has more than its length");
      TRY(memory_.read(TRY(address_of_page(page)) + offset, bytes.data() + filled, size));
      filled += size;
    }
    if (filled != length) return fail(ErrorKind::failed, "a buffer with {} of {} bytes in a list", filled, length);
    return bytes;
  }

  /// The unread bytes of a TCP socket: struct tcp_skb_cb begins with the first sequence number, and segments may
  /// overlap.
  Result<Bytes> stream(std::uint64_t socket) {
    auto next = TRY(memory_.get<std::uint32_t>(socket + at_.read_to));
    const auto end = TRY(memory_.get<std::uint32_t>(socket + at_.received_to));
    Bytes all;
    for (const auto buffer : TRY(buffers(socket))) {
      const auto first = TRY(memory_.get<std::uint32_t>(buffer + at_.skb_cb));
      const auto bytes = TRY(content(buffer));
      const std::uint32_t known = next - first;
      if (known > bytes.size()) continue;
      all.insert(all.end(), bytes.begin() + known, bytes.end());
      next += static_cast<std::uint32_t>(bytes.size() - known);
      if (all.size() > bytes_limit) return fail(ErrorKind::failed, "a queue of {} bytes", all.size());
    }
    // A FIN has a number, too.
    if (end != next && end != next + 1) return fail(ErrorKind::failed, "{} bytes of a queue are missing", end - next);
    return all;
  }

  Result<std::uint64_t> address_of_page(std::uint64_t page) {
    if (!pages_) TRY(find_pages());
    return direct_ + (page - *pages_) / at_.page_size * static_cast<std::uint64_t>(::getpagesize());
  }

  /// Where the kernel has put its array of pages and the memory itself is random, and published nowhere. Both begin at
  /// a full gigabyte; a page of our own with 64 random bytes in it, in a pipe, tells which.
  Result<void> find_pages() {
    std::array<int, 2> ends{-1, -1};
    if (::pipe2(ends.data(), O_CLOEXEC) != 0) return fail_errno("make a pipe");
    const Fd reader(ends[0]), writer(ends[1]);
    std::random_device random;
    std::array<std::uint32_t, 16> mark{}, seen{};
    for (auto& each : mark) each = random();
    if (::write(writer.get(), mark.data(), sizeof(mark)) != sizeof(mark)) return fail_errno("fill a pipe");
    const auto pipe = TRY(private_data(reader.get()));
    const auto buffer = TRY(pointer(pipe + at_.pipe_buffers));
    const auto page = TRY(pointer(buffer + at_.buffer_page));
    const auto offset = TRY(memory_.get<std::uint32_t>(buffer + at_.buffer_offset));
    constexpr std::uint64_t array_tries = 16, memory_tries = 1024;
    for (std::uint64_t j = 0; j < array_tries; ++j) {
      const auto pages = (page & ~(gigabyte - 1)) - j * gigabyte;
      const auto distance = (page - pages) / at_.page_size * static_cast<std::uint64_t>(::getpagesize());
      for (std::uint64_t k = 0; k < memory_tries; ++k) {
        // The pipe itself lies somewhere in the memory.
        const auto direct = (pipe & ~(gigabyte - 1)) - k * gigabyte;
        if (!memory_.read(direct + distance + offset, seen.data(), sizeof(seen)) || seen != mark) continue;
        pages_ = pages;
        direct_ = direct;
        return {};
      }
    }
    return fail(ErrorKind::failed, "where the kernel has its memory can't be found");
  }

  Offsets at_;
  MemoryReader memory_;
  std::optional<std::uint64_t> pages_;
  std::uint64_t direct_ = 0;
};

/// The only one, made when it is first needed.
std::mutex walker_mutex;
std::unique_ptr<Walker> only_walker;

template <typename Read>
auto with_walker(Read read) -> decltype(read(std::declval<Walker&>())) {
  const std::scoped_lock lock(walker_mutex);
  if (!only_walker) only_walker = TRY(Walker::open());
  return read(*only_walker);
}

}  // namespace

Result<std::vector<PendingConnection>> pending_unix_connections(int listener) {
  return with_walker([&](Walker& walker) { return walker.unix_queue(listener); });
}

Result<std::vector<PendingConnection>> pending_tcp_connections(int listener) {
  return with_walker([&](Walker& walker) { return walker.tcp_queue(listener); });
}

Result<std::vector<StreamPiece>> unix_stream_pieces(int fd) {
  return with_walker([&](Walker& walker) { return walker.stream_pieces(fd); });
}

Result<std::vector<UnixMessage>> unix_messages(int fd) {
  return with_walker([&](Walker& walker) { return walker.messages(fd); });
}

Result<bool> tcp_has_ended(int fd) {
  return with_walker([&](Walker& walker) { return walker.has_ended(fd); });
}

Result<std::map<std::int32_t, std::int64_t>> timer_overruns(int pidfd) {
  return with_walker([&](Walker& walker) { return walker.overruns(pidfd); });
}

void prepare_to_read_kernel_state() {
  static_cast<void>(with_walker([](Walker&) { return Result<void>{}; }));
}

}  // namespace godwit::kernel
