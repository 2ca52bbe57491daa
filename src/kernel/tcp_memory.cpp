#include "kernel/tcp_memory.hpp"

#include <netinet/in.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <climits>
#include <cstring>
#include <mutex>
#include <optional>
#include <string_view>

#include "kernel/memory_reader.hpp"

namespace godwit::kernel {
namespace {

/// What changes by use, or is the kernel's own affair, and is no option's value: by struct. A name that a kernel
/// doesn't have is passed over.
struct Volatile {
  std::string_view structure, members;  ///< with a space between two
};
constexpr std::array<Volatile, 5> volatile_members{{
    {"sock_common",
     "skc_state skc_bind_node skc_portaddr_node skc_node skc_nulls_node skc_tx_queue_mapping "
     "skc_rx_queue_mapping skc_incoming_cpu skc_refcnt skc_rxhash"},
    {"sock",
     "sk_drops sk_error_queue sk_receive_queue sk_backlog sk_rx_dst sk_rx_dst_ifindex sk_rx_dst_cookie "
     "sk_napi_id sk_err sk_lock sk_forward_alloc sk_write_pending sk_omem_alloc sk_err_soft sk_wmem_queued "
     "sk_wmem_alloc sk_tsq_flags sk_send_head tcp_rtx_queue sk_write_queue sk_dst_pending_confirm sk_frag "
     "sk_timer sk_pacing_rate sk_tskey sk_dst_cache sk_route_caps sk_gso_type sk_gso_max_segs "
     "sk_gso_max_size sk_txhash sk_sndbuf sk_shutdown sk_callback_lock sk_stamp sk_peer_lock sk_rcu"},
    {"inet_sock", "inet_id"},
    {"inet_connection_sock",
     "icsk_timeout icsk_retransmit_timer icsk_delack_timer icsk_rto icsk_pmtu_cookie icsk_ca_state "
     "icsk_retransmits icsk_pending icsk_backoff icsk_probes_out icsk_ack icsk_mtup icsk_probes_tstamp "
     "icsk_ca_priv"},
    {"tcp_sock",
     "max_window rcv_ssthresh reordering gso_segs retransmit_skb_hint lost_skb_hint snd_wnd mss_cache "
     "snd_cwnd prr_out lost_out sacked_out scaling_ratio is_sack_reneg is_cwnd_limited copied_seq snd_wl1 "
     "tlp_high_seq rttvar_us retrans_out lost snd_ssthresh rtt_min out_of_order_queue segs_out "
     "data_segs_out bytes_sent snd_sml chrono_type chrono_start chrono_stat write_seq pushed_seq lsndtime "
     "mdev_us rtt_seq tcp_wstamp_ns accecn_opt_tstamp tsorted_sent_queue highest_sack rate_app_limited "
     "received_ce_pending accecn_minlen est_ecnfield accecn_opt_demand prev_ecnfield pred_flags "
     "tcp_clock_cache tcp_mstamp rcv_nxt snd_nxt snd_una window_clamp srtt_us packets_out snd_up delivered "
     "delivered_ce received_ce received_ecn_bytes app_limited rcv_wnd rcv_tstamp rx_opt bytes_received "
     "segs_in data_segs_in rcv_wup max_packets_out cwnd_usage_seq rate_delivered rate_interval_us "
     "rcv_rtt_last_tsecr delivered_ecn_bytes first_tx_mstamp delivered_mstamp bytes_acked rcv_rtt_est "
     "rcvq_space dsack_dups compressed_ack_rcv_nxt tsq_node rack compressed_ack dup_ack_counter "
     "tlp_retrans frto mdev_max_us reord_seen snd_cwnd_cnt snd_cwnd_used snd_cwnd_stamp prior_cwnd "
     "prr_delivered last_oow_ack_time pacing_timer compressed_ack_timer ooo_last_skb duplicate_sack "
     "selective_acks recv_sack_cache prior_ssthresh high_seq retrans_stamp undo_marker undo_retrans "
     "mtu_info bytes_retrans total_retrans rto_stamp total_rto total_rto_recoveries total_rto_time "
     "urg_data urg_seq timeout_rehash rcv_ooopack mtu_probe plb_rehash"},
}};

bool is_word_of(std::string_view text, std::string_view word) {
  for (std::size_t at = text.find(word); at != std::string_view::npos; at = text.find(word, at + 1)) {
    const std::size_t end = at + word.size();
    if ((at == 0 || text[at - 1] == ' ') && (end == text.size() || text[end] == ' ')) return !word.empty();
  }
  return false;
}

struct Offsets {
  std::size_t files, fdt, fd, private_data, sk;
  std::size_t family, state, error, error_queue, queue_length, shutdown, buffer_locks, send_buffer, filter, low_water,
      priority, mark, peek_offset, receive_timeout, send_timeout, ip_options, type_of_service;
  std::size_t written_to, sent_to, unacknowledged, received_to, read_to, urgent, window_update, send_window, max_window,
      receive_window, receive_window_update, timestamp_offset, options, mss, size, size6, ipv6, ipv6_options,
      ipv6_packet_options;
  std::size_t no_delay_bit, microseconds_bit, repair_bit;
};

Result<std::size_t> bit_of(const Layouts& layouts, std::string_view structure, std::string_view member) {
  for (const auto& extent : TRY(layouts.extents(structure)))
    if (extent.name == member) return extent.begin;
  return fail(ErrorKind::failed, "this kernel has no {}.{}", structure, member);
}

Result<Offsets> read_offsets(const Layouts& l) {
  return Offsets{.files = TRY(l.offset("task_struct", "files")),
                 .fdt = TRY(l.offset("files_struct", "fdt")),
                 .fd = TRY(l.offset("fdtable", "fd")),
                 .private_data = TRY(l.offset("file", "private_data")),
                 .sk = TRY(l.offset("socket", "sk")),
                 .family = TRY(l.offset("sock_common", "skc_family")),
                 .state = TRY(l.offset("sock_common", "skc_state")),
                 .error = TRY(l.offset("sock", "sk_err")),
                 .error_queue = TRY(l.offset("sock", "sk_error_queue")),
                 .queue_length = TRY(l.offset("sk_buff_head", "qlen")),
                 .shutdown = TRY(l.offset("sock", "sk_shutdown")),
                 .buffer_locks = TRY(l.offset("sock", "sk_userlocks")),
                 .send_buffer = TRY(l.offset("sock", "sk_sndbuf")),
                 .filter = TRY(l.offset("sock", "sk_filter")),
                 .low_water = TRY(l.offset("sock", "sk_rcvlowat")),
                 .priority = TRY(l.offset("sock", "sk_priority")),
                 .mark = TRY(l.offset("sock", "sk_mark")),
                 .peek_offset = TRY(l.offset("sock", "sk_peek_off")),
                 .receive_timeout = TRY(l.offset("sock", "sk_rcvtimeo")),
                 .send_timeout = TRY(l.offset("sock", "sk_sndtimeo")),
                 .ip_options = TRY(l.offset("inet_sock", "inet_opt")),
                 .type_of_service = TRY(l.offset("inet_sock", "tos")),
                 .written_to = TRY(l.offset("tcp_sock", "write_seq")),
                 .sent_to = TRY(l.offset("tcp_sock", "snd_nxt")),
                 .unacknowledged = TRY(l.offset("tcp_sock", "snd_una")),
                 .received_to = TRY(l.offset("tcp_sock", "rcv_nxt")),
                 .read_to = TRY(l.offset("tcp_sock", "copied_seq")),
                 .urgent = TRY(l.offset("tcp_sock", "urg_data")),
                 .window_update = TRY(l.offset("tcp_sock", "snd_wl1")),
                 .send_window = TRY(l.offset("tcp_sock", "snd_wnd")),
                 .max_window = TRY(l.offset("tcp_sock", "max_window")),
                 .receive_window = TRY(l.offset("tcp_sock", "rcv_wnd")),
                 .receive_window_update = TRY(l.offset("tcp_sock", "rcv_wup")),
                 .timestamp_offset = TRY(l.offset("tcp_sock", "tsoffset")),
                 .options = TRY(l.offset("tcp_sock", "rx_opt")),
                 .mss = TRY(l.offset("tcp_options_received", "mss_clamp")),
                 .size = TRY(l.size("tcp_sock")),
                 .size6 = TRY(l.size("tcp6_sock")),
                 .ipv6 = TRY(l.offset("tcp6_sock", "inet6")),
                 .ipv6_options = TRY(l.offset("ipv6_pinfo", "opt")),
                 .ipv6_packet_options = TRY(l.offset("ipv6_pinfo", "pktoptions")),
                 .no_delay_bit = TRY(bit_of(l, "tcp_sock", "nonagle")),
                 .microseconds_bit = TRY(bit_of(l, "tcp_sock", "tcp_usec_ts")),
                 .repair_bit = TRY(bit_of(l, "tcp_sock", "repair"))};
}

/// Ones where two images of one socket must be the same.
Result<Bytes> compared(const Layouts& layouts, const Offsets& at) {
  Bytes mask(at.size6, 0xff);
  const auto clear = [&](std::size_t begin, std::size_t end) {
    for (std::size_t bit = begin; bit < end && bit < mask.size() * 8; ++bit)
      mask[bit / 8] = static_cast<std::uint8_t>(mask[bit / 8] & ~(1u << bit % 8));
  };
  const auto clear_members = [&](const Volatile& of, std::size_t base) -> Result<void> {
    for (const auto& extent : TRY(layouts.extents(of.structure)))
      if (is_word_of(of.members, extent.name)) clear(base * 8 + extent.begin, base * 8 + extent.end);
    return {};
  };
  for (const auto& each : volatile_members) TRY(clear_members(each, 0));
  TRY(clear_members({"ipv6_pinfo", "dst_cookie saddr_cache daddr_cache rcv_flowinfo rxpmtu cork"}, at.ipv6));
  // The one option among what was negotiated: the rest of that struct changes with every segment.
  for (const auto& extent : TRY(layouts.extents("tcp_options_received")))
    if (extent.name == "user_mss")
      for (std::size_t bit = at.options * 8 + extent.begin; bit < at.options * 8 + extent.end; ++bit)
        mask[bit / 8] = static_cast<std::uint8_t>(mask[bit / 8] | 1u << bit % 8);
  return mask;
}

template <typename T>
T at(const Bytes& image, std::size_t offset) {
  T value{};
  std::memcpy(&value, image.data() + offset, sizeof(value));
  return value;
}

unsigned bits_at(const Bytes& image, std::size_t bit) {
  return image[bit / 8] >> bit % 8;
}

}  // namespace

struct TcpMemory::Parts {
  Offsets at;
  Bytes mask;
  MemoryReader memory;
  BulkReader sockets;
  std::mutex mutex;

  Result<std::uint64_t> pointer(std::uint64_t address) { return memory.get<std::uint64_t>(address); }
  Result<std::vector<std::uint64_t>> files(std::span<const int> fds);
};

TcpMemory::TcpMemory(std::unique_ptr<Parts> parts) : parts_(std::move(parts)) {}
TcpMemory::~TcpMemory() = default;

Result<std::unique_ptr<TcpMemory>> TcpMemory::open() {
  const auto layouts = TRY(Layouts::read());
  const auto offsets = TRY(read_offsets(layouts));
  const std::array<std::size_t, 2> path{offsets.private_data, offsets.sk};
  auto mask = TRY(compared(layouts, offsets));
  auto memory = TRY(MemoryReader::open());
  auto sockets = TRY(BulkReader::open(path, offsets.size6));
  return std::unique_ptr<TcpMemory>(new TcpMemory(
      std::unique_ptr<Parts>(new Parts{offsets, std::move(mask), std::move(memory), std::move(sockets), {}})));
}

Result<TcpMemory*> TcpMemory::get() {
  static std::mutex mutex;
  static std::optional<Result<std::unique_ptr<TcpMemory>>> known;
  const std::scoped_lock lock(mutex);
  if (!known) known = open();
  if (!*known) return std::unexpected(known->error());
  return known->value().get();
}

/// struct file of each: the table of descriptors is an array of pointers.
Result<std::vector<std::uint64_t>> TcpMemory::Parts::files(std::span<const int> fds) {
  if (fds.empty()) return std::vector<std::uint64_t>{};
  const auto [lowest, highest] = std::ranges::minmax(fds);
  const auto own = TRY(pointer(TRY(memory.current_task()) + at.files));
  const auto table = TRY(pointer(TRY(pointer(own + at.fdt)) + at.fd));
  std::vector<std::uint64_t> all(static_cast<std::size_t>(highest - lowest) + 1), wanted;
  TRY(memory.read(table + static_cast<std::uint64_t>(lowest) * sizeof(all[0]), all.data(),
                  all.size() * sizeof(all[0])));
  for (const int fd : fds) wanted.push_back(all[static_cast<std::size_t>(fd - lowest)]);
  return wanted;
}

Result<std::vector<TcpMemory::Image>> TcpMemory::read(std::span<const int> fds) {
  const std::scoped_lock lock(parts_->mutex);
  const auto files = TRY(parts_->files(fds));
  std::vector<Image> images(fds.size());
  for (std::size_t i = 0; i < files.size(); i += BulkReader::most) {
    const auto part = std::span(files).subspan(i, std::min(BulkReader::most, files.size() - i));
    TRY(parts_->sockets.read(part, [&](std::size_t n, BytesView bytes) {
      images[i + n].assign(bytes.begin(), bytes.end());
      if (images[i + n].empty()) return;
      const auto family = kernel::at<std::uint16_t>(images[i + n], parts_->at.family);
      if (family == AF_INET) images[i + n].resize(parts_->at.size);
      if (family != AF_INET && family != AF_INET6) images[i + n].clear();
    }));
  }
  return images;
}

bool TcpMemory::same_options(const Image& a, const Image& b) const {
  if (a.empty() || a.size() != b.size()) return false;
  std::uint64_t differs = 0;
  std::size_t i = 0;
  for (; i + sizeof(differs) <= a.size(); i += sizeof(differs))
    differs |= (at<std::uint64_t>(a, i) ^ at<std::uint64_t>(b, i)) & at<std::uint64_t>(parts_->mask, i);
  for (; i < a.size(); ++i) differs |= static_cast<unsigned>((a[i] ^ b[i]) & parts_->mask[i]);
  constexpr unsigned send_buffer_locked = 1;
  if (bits_at(a, parts_->at.buffer_locks * 8) & send_buffer_locked)
    differs |= at<std::uint32_t>(a, parts_->at.send_buffer) != at<std::uint32_t>(b, parts_->at.send_buffer);
  return differs == 0;
}

bool TcpMemory::is_whole(const Image& image) const {
  const auto& o = parts_->at;
  if (image.empty() || at<std::uint64_t>(image, o.filter) != 0 || at<std::uint64_t>(image, o.ip_options) != 0)
    return false;
  return image.size() == o.size || (at<std::uint64_t>(image, o.ipv6 + o.ipv6_options) == 0 &&
                                    at<std::uint64_t>(image, o.ipv6 + o.ipv6_packet_options) == 0);
}

TcpMemory::Toggled TcpMemory::toggled(const Image& image) const {
  const auto& o = parts_->at;
  const unsigned nagle = bits_at(image, o.no_delay_bit);
  return {.no_delay = static_cast<int>(nagle & 1),
          .cork = static_cast<int>(nagle >> 1 & 1),
          .low_water = at<std::int32_t>(image, o.low_water),
          .priority = at<std::int32_t>(image, o.priority),
          .mark = at<std::int32_t>(image, o.mark),
          .peek_offset = at<std::int32_t>(image, o.peek_offset),
          .type_of_service = at<std::uint8_t>(image, o.type_of_service),
          .receive_timeout = at<std::int64_t>(image, o.receive_timeout) != LONG_MAX,
          .send_timeout = at<std::int64_t>(image, o.send_timeout) != LONG_MAX};
}

TcpProgress TcpMemory::progress(const Image& image, std::uint32_t clock) const {
  const auto& o = parts_->at;
  const auto word = [&](std::size_t offset) { return at<std::uint32_t>(image, offset); };
  constexpr int established = 1;
  TcpProgress progress{.state = at<std::uint8_t>(image, o.state),
                       .sent = word(o.written_to),
                       .received = word(o.received_to),
                       // In milliseconds, but bit 0 says so; it is no matter when it is a bit ahead.
                       .timestamp = (clock + word(o.timestamp_offset) + 2) & ~1u,
                       .window_update = word(o.window_update),
                       .send_window = word(o.send_window),
                       .max_window = word(o.max_window),
                       .receive_window = word(o.receive_window),
                       .receive_window_update = word(o.receive_window_update),
                       .mss = at<std::uint16_t>(image, o.options + o.mss)};
  progress.quiet = progress.state == established && word(o.unacknowledged) == progress.sent &&
                   word(o.sent_to) == progress.sent && word(o.read_to) == progress.received && word(o.error) == 0 &&
                   word(o.error_queue + o.queue_length) == 0 && at<std::uint8_t>(image, o.shutdown) == 0 &&
                   at<std::uint16_t>(image, o.urgent) == 0 && (bits_at(image, o.microseconds_bit) & 1) == 0 &&
                   (bits_at(image, o.repair_bit) & 1) == 0;
  return progress;
}

}  // namespace godwit::kernel
