#pragma once

#include <map>
#include <memory>
#include <span>
#include <unordered_map>
#include <vector>

#include "objects/kind.hpp"

/// Kernel state is copied while the pod runs, like its memory: an object is captured, sent and built ahead, and in the
/// freeze only what has changed is read, sent and set. So it is with TCP connections, of which a pod may have
/// thousands; every other object is captured whole in the freeze.
namespace godwit::objects {

/// An object as it was while the pod ran.
struct AheadImage {
  std::uint32_t key = 0;  ///< names it within the migration
  Bytes state;
  std::vector<Holder> holders;
  MSGPACK_DEFINE_MAP(key, state, holders)
};

/// One that was sent ahead, in the freeze.
struct Kept {
  ObjectId id = 0;
  std::uint32_t key = 0;
  Bytes change;
  std::vector<Holder> holders;  ///< none: they are the same
  MSGPACK_DEFINE_MAP(id, key, change, holders)
};

/// The source's side. What it believes of an object without asking it again is what the kernel's own memory shows to
/// be unchanged; an object of which it isn't sure is not kept, and captured whole.
class AheadSource {
 public:
  AheadSource();
  ~AheadSource();
  /// While the pod runs: captures those of our duplicates that can be sent ahead and haven't been yet.
  Result<std::vector<AheadImage>> look(std::span<const Descriptor>);
  /// Nothing has been sent ahead.
  [[nodiscard]] bool empty() const;
  /// In the freeze, before the first `keep`.
  Result<void> compare(Source&);
  /// What has changed since it was sent; nullopt when it must be captured whole. `busy` as in capture.
  Result<std::optional<Kept>> keep(const Descriptor&, Source&);

 private:
  struct Parts;
  std::unique_ptr<Parts> parts_;
};

/// The destination's side; on the pod's workshop.
class AheadDestination {
 public:
  static constexpr std::string_view kind = "tcp";  ///< of all that is sent ahead
  AheadDestination();
  ~AheadDestination();
  Result<void> build(AheadImage, Destination&);
  /// What was built; -1 when there is no such object.
  [[nodiscard]] int built(std::uint32_t key) const;
  [[nodiscard]] const std::vector<Holder>& holders(std::uint32_t key) const;
  /// Brings those that are kept up to date.
  Result<void> finish(const std::vector<Kept>&, Destination&);
  /// Gives the object away.
  Fd take(std::uint32_t key);
  /// What wasn't given away is no object of the pod's any more.
  void clear();
  [[nodiscard]] std::vector<std::pair<std::uint32_t, const Holder*>> held_by(PodPid) const;

 private:
  struct Parts;
  std::unique_ptr<Parts> parts_;
};

}  // namespace godwit::objects
