// Page records: on a page connection, in a message, and the questions for pages that a source answers.
#include <set>

#include "fuzz.hpp"
#include "migrate/page_set.hpp"
#include "migrate/page_stream.hpp"

namespace {

using namespace godwit;
using migrate::PageHeader;

/// Whatever is put in place is whole pages, of a bounded size, and readable to its end.
Result<void> put(migrate::SpaceId, std::uint64_t address, const void* data, std::size_t size) {
  fuzz::require(address % page_size == 0 && size % page_size == 0 && size <= migrate::max_piece, "whole pages");
  if (data == nullptr || size == 0) return {};
  const volatile std::uint8_t* bytes = static_cast<const std::uint8_t*>(data);
  static_cast<void>(bytes[0]);
  static_cast<void>(bytes[size - 1]);
  return {};
}

void one(BytesView input) {
  (void)migrate::PageReceiver::decode(input, put);
  fuzz::Wire wire(input);
  std::vector<Stream> connections;
  connections.push_back(std::move(wire.stream));
  migrate::PageReceiver receiver(std::move(connections), put);
  (void)receiver.wait(UINT64_MAX);
}

Bytes record(const PageHeader& header, std::size_t content = 0) {
  Bytes bytes(sizeof header + content, 0xa5);
  std::memcpy(bytes.data(), &header, sizeof header);
  return bytes;
}

std::vector<Bytes> seeds() {
  const std::vector<Bytes> each{record({7, PageHeader::data, 0x7f0000000000, page_size}, page_size),
                                record({7, PageHeader::zero, 0x7f0000010000, 4 * page_size}),
                                record({migrate::object_space, PageHeader::zero, 0, page_size}),
                                record({0, PageHeader::end, 1, 0}), record({0, PageHeader::close, 0, 0})};
  std::vector<Bytes> all = each;
  all.emplace_back();
  for (const auto& bytes : each) fuzz::append(all.back(), bytes);
  return all;
}

}  // namespace

FUZZ_TARGET(one, seeds)
