#include "node/membership.hpp"

#include <algorithm>
#include <filesystem>
#include <future>

#include "base/caught.hpp"
#include "base/log.hpp"
#include "image/codec.hpp"
#include "node/authority.hpp"

namespace godwit::node {
namespace {

constexpr std::chrono::milliseconds call_time{5000};
/// Who talks to nobody is told within this time.
constexpr std::chrono::seconds spread_interval{20};
/// A renewal that failed is tried again after this part of what is left, but not more often than that.
constexpr std::chrono::seconds least_pause{1};
constexpr std::size_t request_limit = 64 * 1024;
constexpr std::size_t answer_limit = 2 * pki::list_limit;

constexpr image::Limits limits_of(std::size_t bytes) {
  return {.bytes = bytes, .items = 64, .blob = bytes, .depth = 4};
}

struct JoinRequest {
  std::string secret, request;
  MSGPACK_DEFINE_MAP(secret, request)
};

struct JoinAnswer {
  std::string error, hint;
  std::string certificate, authority, expelled, node;
  MSGPACK_DEFINE_MAP(error, hint, certificate, authority, expelled, node)
};

struct RenewRequest {
  std::string request;
  MSGPACK_DEFINE_MAP(request)
};

struct RenewAnswer {
  std::string error;
  std::string certificate;
  MSGPACK_DEFINE_MAP(error, certificate)
};

/// One's list of the expelled. Who is asked sends its own only when it is the newer one.
struct Lists {
  std::uint64_t number = 0;
  std::string list;
  MSGPACK_DEFINE_MAP(number, list)
};

template <typename T>
Result<T> receive(Stream& stream, std::size_t limit, Deadline deadline) {
  return image::unpack<T>(TRY(read_frame(stream, limit, deadline)), limits_of(limit));
}

template <typename T>
Result<void> send(Stream& stream, const T& value, Deadline deadline) {
  return write_frame(stream, image::pack(value), deadline);
}

JoinAnswer let_in(const JoinRequest& asked, const std::string& directory, std::chrono::seconds life,
                  const std::string& list) {
  const auto work = [&]() -> Result<JoinAnswer> {
    auto authority = TRY(pki::Authority::open(directory));
    // Before the token is used up.
    const auto request = TRY(pki::parse_request(asked.request));
    pki::Subject subject;
    const auto certificate = TRY(authority.let_in(request.get(), asked.secret, life, subject));
    log::info("node {} is let in with a token", subject.name);
    return JoinAnswer{.certificate = pki::to_pem(certificate.get()),
                      .authority = pki::to_pem(authority.certificate()),
                      .expelled = list,
                      .node = subject.name};
  };
  auto done = work();
  if (done) return *done;
  log::warn("somebody who wants to join: {}", done.error().message());
  return JoinAnswer{.error = done.error().what, .hint = done.error().hint};
}

/// For the node that has the authority itself. It needn't wait: it could give itself any.
Result<pki::Certificate> sign_own(const std::string& directory, std::chrono::seconds life, const std::string& pem,
                                  X509* old) {
  auto authority = TRY(pki::Authority::open(directory));
  const auto request = TRY(pki::parse_request(pem));
  return authority.sign(request.get(), {pki::name_of(old), pki::labels_of(old)}, life, pki::serial_of(old));
}

Result<pki::Certificate> renew_for(const std::string& directory, std::chrono::seconds life, const std::string& pem,
                                   X509* shown) {
  auto authority = TRY(pki::Authority::open(directory));
  const auto request = TRY(pki::parse_request(pem));
  return authority.renew(request.get(), shown, life);
}

RenewAnswer renewed(const Result<pki::Certificate>& certificate) {
  if (!certificate) return {certificate.error().message(), {}};
  return {{}, pki::to_pem(certificate->get())};
}

/// Well after the authority would do it: clocks differ.
pki::Clock::time_point renewal_of(X509* certificate) {
  return pki::thirds_over(certificate, 2);
}

}  // namespace

Membership::Membership(Links& links, Trust& trust) : links_(links), trust_(trust) {
  links_.on_newer_list = [this](const std::string& peer) {
    const std::lock_guard lock(mutex_);
    newer_at_.insert(peer);
    wake_.notify_all();
  };
  thread_ = std::thread([this] { keep_going("the certificates", [this] { work(); }); });
}

Membership::~Membership() {
  {
    const std::lock_guard lock(mutex_);
    ending_ = true;
  }
  wake_.notify_all();
  thread_.join();
}

std::string Membership::directory() const {
  return std::filesystem::path(links_.config().tls->authority).parent_path();
}

bool Membership::offers(const std::string& service, bool member) const {
  if (service == service::expelled) return member;
  if (service == service::renew) return member && pki::Authority::in(directory());
  return service == service::join && pki::Authority::in(directory());
}

void Membership::serve(Stream& stream, const Caller& caller) {
  const Deadline deadline = in(call_time);
  const auto answer = [&]() -> Result<void> {
    if (caller.service == service::join) {
      const auto asked = TRY(receive<JoinRequest>(stream, request_limit, deadline));
      const std::string list = pki::to_pem(trust_.credentials()->expelled());
      return send(stream, let_in(asked, directory(), links_.config().tls->lifetime, list), deadline);
    }
    if (caller.service == service::renew) {
      const auto asked = TRY(receive<RenewRequest>(stream, request_limit, deadline));
      const auto certificate =
          renew_for(directory(), links_.config().tls->lifetime, asked.request, pki::shown_certificate(stream));
      if (certificate) log::info("the certificate of node {} is renewed", caller.peer);
      return send(stream, renewed(certificate), deadline);
    }
    const auto theirs = TRY(receive<Lists>(stream, answer_limit, deadline));
    if (!theirs.list.empty()) TRY(trust_.install(theirs.list));
    const auto now = trust_.credentials();
    Lists ours{.number = pki::number_of(now->expelled())};
    if (ours.number > theirs.number) ours.list = pki::to_pem(now->expelled());
    return send(stream, ours, deadline);
  };
  if (const auto done = answer(); !done) log::warn("{} of {}: {}", caller.service, caller.peer, done.error().message());
}

Result<void> Membership::exchange_lists(const std::string& peer) {
  const Deadline deadline = in(call_time);
  Stream stream = TRY(links_.connect(peer, service::expelled, call_time));
  const auto now = trust_.credentials();
  TRY(send(stream, Lists{pki::number_of(now->expelled()), pki::to_pem(now->expelled())}, deadline));
  const auto theirs = TRY(receive<Lists>(stream, answer_limit, deadline));
  if (!theirs.list.empty()) TRY(trust_.install(theirs.list));
  return {};
}

std::vector<Membership::Told> Membership::spread() {
  // Some at a time: who is away costs the others no more than its share of the waiting.
  constexpr std::size_t at_a_time = 16;
  const auto& peers = links_.config().peers;
  std::vector<Told> told;
  for (std::size_t first = 0; first < peers.size(); first += at_a_time) {
    std::vector<std::pair<std::string, std::future<Result<void>>>> group;
    for (std::size_t i = first; i < std::min(peers.size(), first + at_a_time); i++)
      group.emplace_back(peers[i].name,
                         std::async(std::launch::async, [this, &peers, i] { return exchange_lists(peers[i].name); }));
    for (auto& [name, outcome] : group) told.push_back({name, outcome.get()});
  }
  return told;
}

Result<pki::Certificate> Membership::ask_for_renewal(const std::string& request) {
  Error last{ErrorKind::unreachable, "no peer has the cluster's authority", 0, {}};
  for (const Peer& peer : links_.config().peers) {
    const Deadline deadline = in(call_time);
    auto stream = links_.connect(peer.name, service::renew, call_time);
    if (!stream) {
      last = std::move(stream.error());
      continue;
    }
    TRY(send(*stream, RenewRequest{request}, deadline));
    const auto answer = TRY(receive<RenewAnswer>(*stream, request_limit, deadline));
    if (!answer.error.empty()) return fail(ErrorKind::refused, "node {}: {}", peer.name, answer.error);
    return pki::parse_certificate(answer.certificate);
  }
  return std::unexpected(std::move(last));
}

Result<void> Membership::renew() {
  const auto now = trust_.credentials();
  // The key stays: it and its certificate are two files, and a crash between them must not leave a node without either.
  // A new key comes with `join`.
  const auto request = TRY(pki::make_request(now->key()));
  const std::string pem = pki::to_pem(request.get());
  auto certificate = pki::Authority::in(directory())
                         ? sign_own(directory(), links_.config().tls->lifetime, pem, now->certificate())
                         : ask_for_renewal(pem);
  if (!certificate) return std::unexpected(std::move(certificate.error()).within("renew this node's certificate"));
  TRY(trust_.install(std::move(*certificate)));
  log::info("this node's certificate is renewed: good until {}",
            pki::to_text(pki::life_of(trust_.credentials()->certificate()).end));
  return {};
}

void Membership::work() {
  using std::chrono::steady_clock;
  auto next_spread = steady_clock::now();
  auto next_attempt = steady_clock::now();
  std::unique_lock lock(mutex_);
  while (!ending_) {
    const auto newer = std::exchange(newer_at_, {});
    lock.unlock();
    for (const auto& peer : newer)
      if (const auto done = exchange_lists(peer); !done) log::warn("{}", done.error().message());
    if (steady_clock::now() >= next_spread) {
      // Who can't be reached hears of it later: no news that somebody is away.
      (void)spread();
      next_spread = steady_clock::now() + spread_interval;
    }
    const auto now = trust_.credentials();
    const auto end = pki::life_of(now->certificate()).end;
    auto until_renewal =
        std::chrono::ceil<std::chrono::milliseconds>(renewal_of(now->certificate()) - pki::Clock::now());
    if (until_renewal.count() <= 0 && steady_clock::now() >= next_attempt) {
      const auto done = renew();
      if (!done) log::warn("{}", done.error().message());
      const auto left = std::chrono::duration_cast<std::chrono::seconds>(end - pki::Clock::now());
      const auto pause = std::clamp<std::chrono::seconds>(left / 20, least_pause, std::chrono::hours(1));
      next_attempt = steady_clock::now() + pause;
    }
    lock.lock();
    // The wall clock may jump: looked at again soon.
    wake_.wait_for(lock, std::chrono::seconds(1), [this] { return ending_ || !newer_at_.empty(); });
  }
}

Result<Joined> join(const std::string& text, const std::string& request, Deadline deadline) {
  const auto token = TRY(pki::Token::parse(text));
  const auto [host, port] = TRY(split_address(token.address));
  Fd fd = TRY(connect_tcp(host, port, deadline));
  pki::Shown shown;
  auto secured = pki::secure_as_stranger(std::move(fd), token.fingerprint, shown, deadline);
  if (!secured) {
    if (secured.error().kind == ErrorKind::refused && shown.certificate)
      return std::unexpected(Error{ErrorKind::refused,
                                   fmt::format("{} is not of the cluster that the token is for", token.address), 0,
                                   "is the address right? Somebody may stand in between"});
    return std::unexpected(std::move(secured.error()));
  }
  const std::string by = pki::name_of(shown.certificate.get());
  TRY(initiate(*secured, {"stranger", TRY(pki::session_key(*secured))}, by, std::string(service::join), deadline));
  TRY(send(*secured, JoinRequest{token.secret, request}, deadline));
  const auto answer = TRY(receive<JoinAnswer>(*secured, answer_limit, deadline));
  if (!answer.error.empty())
    return std::unexpected(Error{ErrorKind::refused, fmt::format("node {}: {}", by, answer.error), 0, answer.hint});
  if (pki::fingerprint(TRY(pki::parse_certificate(answer.authority)).get()) != token.fingerprint)
    return fail(ErrorKind::refused, "node {} answers with another authority than the token's", by);
  return Joined{answer.certificate, answer.authority, answer.expelled, answer.node, by, token.address};
}

}  // namespace godwit::node
