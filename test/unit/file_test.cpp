#include <dirent.h>
#include <linux/memfd.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include <filesystem>
#include <fstream>
#include <set>

#include "object_fixture.hpp"
#include "objects/content.hpp"
#include "objects/directory.hpp"
#include "objects/locks.hpp"
#include "objects/memory_object.hpp"

namespace godwit::objects::testing {
namespace {

namespace fs = std::filesystem;

class File : public ::testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/var/tmp/godwit-file-XXXXXX";
    ASSERT_NE(::mkdtemp(name), nullptr);
    directory = name;
    source.upper_path = directory;
  }
  void TearDown() override { fs::remove_all(directory); }
  std::string path(const std::string& name) const { return directory + "/" + name; }
  void write(const std::string& name, const std::string& text) const { std::ofstream(path(name)) << text; }
  Fd open(const std::string& name, int flags, int mode = 0644) const {
    Fd fd{::open(path(name).c_str(), flags | O_CLOEXEC, mode)};
    EXPECT_TRUE(fd) << std::strerror(errno);
    return fd;
  }
  void move() { build_all(capture_all(source), destination); }

  std::string directory;
  TestSource source;
  TestDestination destination;
};

std::string read_some(int fd, std::size_t size) {
  std::string text(size, '\0');
  const ssize_t got = ::read(fd, text.data(), size);
  text.resize(got < 0 ? 0 : static_cast<std::size_t>(got));
  return text;
}
std::string link_of(int fd) {
  return fs::read_symlink("/proc/self/fd/" + std::to_string(fd)).string();
}

/// Names that reading a directory on gives.
std::vector<std::string> names_left(int fd) {
  std::vector<std::string> names;
  std::vector<char> buffer(4096);
  for (long got; (got = ::getdents64(fd, buffer.data(), buffer.size())) > 0;)
    for (long at = 0; at < got;) {
      const auto* entry = reinterpret_cast<const struct dirent64*>(buffer.data() + at);
      names.emplace_back(entry->d_name);
      at += entry->d_reclen;
    }
  return names;
}

TEST_F(File, PositionAndFlags) {
  write("a", "0123456789");
  const Fd reader = open("a", O_RDONLY), appender = open("a", O_WRONLY | O_APPEND),
           plain = open("a", O_RDWR | O_NONBLOCK);
  ::lseek(reader.get(), 4, SEEK_SET);
  source.add(reader.get());
  source.add(appender.get());
  source.add(plain.get());
  move();
  for (ObjectId id = 0; id < 3; ++id) {
    EXPECT_EQ(::fcntl(destination.built(id), F_GETFL), source.all[id].flags);
    EXPECT_EQ(link_of(destination.built(id)), path("a"));
  }
  EXPECT_EQ(read_some(destination.built(0), 3), "456");
  EXPECT_EQ(::lseek(reader.get(), 0, SEEK_CUR), 4);
  EXPECT_EQ(::write(destination.built(1), "X", 1), 1);
  EXPECT_EQ(fs::file_size(path("a")), 11u);
  EXPECT_EQ(::lseek(destination.built(2), 0, SEEK_CUR), 0);
}

TEST_F(File, DeletedFileTravelsWithItsHolesAndIsSharedByItsDescriptions) {
  const Fd first = open("gone", O_RDWR | O_CREAT, 0640);
  ASSERT_EQ(::pwrite(first.get(), "begin", 5, 0), 5);
  ASSERT_EQ(::pwrite(first.get(), "far", 3, 50 << 20), 3);
  const Fd second = open("gone", O_RDONLY);
  ASSERT_EQ(::unlink(path("gone").c_str()), 0);
  source.add(first.get());
  source.add(second.get());
  const auto images = capture_all(source);
  EXPECT_LT(images[0].state.size(), 1u << 20);  // no holes on the wire
  EXPECT_LT(images[1].state.size(), 4096u);     // and the content only once
  build_all(images, destination);
  EXPECT_FALSE(fs::exists(path("gone")));
  EXPECT_EQ(link_of(destination.built(0)), path("gone") + " (deleted)");
  struct stat status {};
  ASSERT_EQ(::fstat(destination.built(0), &status), 0);
  EXPECT_EQ(status.st_nlink, 0u);
  EXPECT_EQ(status.st_size, (50 << 20) + 3);
  EXPECT_EQ(status.st_mode, source.all[0].status.st_mode);
  EXPECT_EQ(status.st_mtim.tv_nsec, source.all[0].status.st_mtim.tv_nsec);
  ASSERT_EQ(::pwrite(destination.built(0), "BEGIN", 5, 0), 5);
  EXPECT_EQ(read_some(destination.built(1), 5), "BEGIN");
  char far[4] = {};
  ASSERT_EQ(::pread(destination.built(1), far, 3, 50 << 20), 3);
  EXPECT_STREQ(far, "far");
}

TEST_F(File, DeletedNameThatIsTakenAgain) {
  const Fd old = open("name", O_RDWR | O_CREAT);
  ASSERT_EQ(::write(old.get(), "old", 3), 3);
  ASSERT_EQ(::unlink(path("name").c_str()), 0);
  write("name", "new");
  source.add(old.get());
  move();
  char text[4] = {};
  ASSERT_EQ(::pread(destination.built(0), text, 3, 0), 3);
  EXPECT_STREQ(text, "old");
  EXPECT_EQ(fs::file_size(path("name")), 3u);
  EXPECT_EQ(std::distance(fs::directory_iterator(directory), fs::directory_iterator()), 1);
}

TEST_F(File, TemporaryFileCanStillGetAName) {
  const Fd fd = open("", O_TMPFILE | O_RDWR);
  ASSERT_EQ(::write(fd.get(), "tmp", 3), 3);
  source.add(fd.get());
  move();
  const std::string by_fd = "/proc/self/fd/" + std::to_string(destination.built(0));
  EXPECT_EQ(::linkat(AT_FDCWD, by_fd.c_str(), AT_FDCWD, path("named").c_str(), AT_SYMLINK_FOLLOW), 0);
  EXPECT_EQ(fs::file_size(path("named")), 3u);
}

TEST_F(File, RemovedNameOfAFileWithAnotherName) {
  write("sub", "x");
  const Fd fd = open("sub", O_RDONLY);
  fs::create_directory(path("deeper"));
  fs::create_hard_link(path("sub"), path("deeper/link"));
  fs::remove(path("sub"));
  TestSource rooted;
  rooted.upper_path = directory;
  rooted.root_path = directory;
  rooted.add(fd.get());
  rooted.all[0].link = "/sub (deleted)";
  const auto state = file_kind.capture(rooted.all[0], rooted);
  ASSERT_TRUE(state) << state.error().message();
  const std::string text(state->begin(), state->end());
  EXPECT_NE(text.find("/deeper/link"), std::string::npos);
}

TEST_F(File, NameThatEndsLikeADeletedOne) {
  write("odd (deleted)", "alive");
  const Fd fd = open("odd (deleted)", O_RDONLY);
  source.add(fd.get());
  move();
  EXPECT_EQ(link_of(destination.built(0)), path("odd (deleted)"));
  EXPECT_EQ(read_some(destination.built(0), 9), "alive");
}

TEST_F(File, SizeThatDiffersAtTheDestinationIsAnError) {
  write("a", "0123");
  const Fd fd = open("a", O_RDONLY);
  source.add(fd.get());
  const auto images = capture_all(source);
  write("a", "01234");
  EXPECT_FALSE(file_kind.build(images[0].state, destination));
}

TEST_F(File, DirectoryReadHalfwayGoesOnWhereItWas) {
  for (int i = 0; i < 300; ++i) write("entry-with-a-long-name-" + std::to_string(i), "");
  const Fd fd = open("", O_RDONLY | O_DIRECTORY);
  std::vector<char> buffer(4096);
  const long got = ::getdents64(fd.get(), buffer.data(), buffer.size());
  ASSERT_GT(got, 0);
  source.add(fd.get());
  move();
  const auto here = names_left(fd.get()), there = names_left(destination.built(0));
  EXPECT_GT(here.size(), 100u);
  EXPECT_LT(here.size(), 300u);
  EXPECT_TRUE(here == there);
  TestSource end;
  end.add(fd.get());
  TestDestination after;
  build_all(capture_all(end), after);
  EXPECT_EQ(::getdents64(after.built(0), buffer.data(), buffer.size()), 0);
}

TEST_F(File, DirectoryInAnotherOrderMissesNothing) {
  fs::create_directory(path("x"));
  for (const char* name : {"a", "b", "c", "d"}) write(std::string("x/") + name, "");
  const Fd fd = open("x", O_RDONLY | O_DIRECTORY);
  ASSERT_TRUE(seek_position(fd.get(), {.names = {".", "..", "a", "b", "c", "d"}}));
  std::vector<char> buffer(4096);
  EXPECT_EQ(::getdents64(fd.get(), buffer.data(), buffer.size()), 0);
  ASSERT_TRUE(seek_position(fd.get(), {.names = {"nothing"}}));
  EXPECT_GT(::getdents64(fd.get(), buffer.data(), buffer.size()), 100);
}

TEST_F(File, RemovedDirectory) {
  fs::create_directory(path("dir"));
  const Fd fd = open("dir", O_RDONLY | O_DIRECTORY);
  fs::remove(path("dir"));
  source.add(fd.get());
  move();
  EXPECT_EQ(link_of(destination.built(0)), path("dir") + " (deleted)");
  EXPECT_FALSE(fs::exists(path("dir")));
}

TEST_F(File, PathOnlyDescriptors) {
  write("file", "x");
  fs::create_symlink("file", path("link"));
  const Fd file = open("file", O_PATH), link = open("link", O_PATH | O_NOFOLLOW);
  source.add(file.get());
  source.add(link.get());
  move();
  EXPECT_NE(::fcntl(destination.built(0), F_GETFL) & O_PATH, 0);
  struct stat status {};
  ASSERT_EQ(::fstat(destination.built(1), &status), 0);
  EXPECT_TRUE(S_ISLNK(status.st_mode));
}

TEST_F(File, FileInMemoryTravelsWithTheState) {
  const std::string name = "/dev/shm/godwit-" + std::to_string(::getpid());
  Fd fd{::open(name.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600)};
  ASSERT_EQ(::write(fd.get(), "shared", 6), 6);
  source.add(fd.get());
  const auto images = capture_all(source);
  ASSERT_EQ(::unlink(name.c_str()), 0);
  build_all(images, destination);
  std::string text;
  std::ifstream(name) >> text;
  EXPECT_EQ(text, "shared");
  EXPECT_EQ(::lseek(destination.built(0), 0, SEEK_CUR), 6);
  ::unlink(name.c_str());
}

/// The state of an open file in memory, as a source that lies would change it: `name` says another path.
Bytes forged(const std::string& upper, const std::string& forged_path) {
  TestSource source;
  source.upper_path = upper;
  const std::string name = "/dev/shm/" + std::string(forged_path.size() - 9, 'x');
  Fd fd{::open(name.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600)};
  EXPECT_EQ(::write(fd.get(), "forged", 6), 6);
  source.add(fd.get());
  Bytes state = capture_all(source).back().state;
  ::unlink(name.c_str());
  const auto at = std::search(state.begin(), state.end(), name.begin(), name.end());
  EXPECT_NE(at, state.end());
  std::copy(forged_path.begin(), forged_path.end(), at);
  return state;
}

TEST_F(File, ContentIsWrittenIntoMemoryOnly) {
  write("victim", "whole");
  fs::create_directory_symlink(directory, "/dev/shm/godwit-link");
  for (const std::string& where :
       {path("victim"), path("new"), std::string("/proc/sys/kernel/core_pattern"),
        std::string("/dev/shm/../../var/tmp/godwit-forged"), std::string("/dev/shm/godwit-link/victim"),
        std::string("/dev/shm/godwit-link/new")}) {
    const auto built = file_kind.build(forged(directory, where), destination);
    ASSERT_FALSE(built) << where;
  }
  ::unlink("/dev/shm/godwit-link");
  EXPECT_EQ(read_some(open("victim", O_RDONLY).get(), 10), "whole");
  EXPECT_FALSE(fs::exists(path("new")));
  EXPECT_FALSE(fs::exists("/var/tmp/godwit-forged"));
}

TEST_F(File, NamelessFileIsMadeWhereNoLinkLeads) {
  fs::create_directories(path("a/b"));
  fs::create_directory(path("elsewhere"));
  const Fd fd = open("a/b", O_RDONLY | O_DIRECTORY);
  fs::remove_all(path("a"));
  source.add(fd.get());
  fs::create_directory_symlink(path("elsewhere"), path("a"));
  const auto images = capture_all(source);
  const auto before = fs::last_write_time(path("elsewhere"));
  build_all(images, destination);
  EXPECT_EQ(link_of(destination.built(0)), "/b (deleted)");
  EXPECT_EQ(fs::last_write_time(path("elsewhere")), before);
}

TEST_F(File, MemoryEngineBringsWhatIsMapped) {
  const Fd fd = open("mapped", O_RDWR | O_CREAT);
  ASSERT_EQ(::write(fd.get(), "content", 7), 7);
  ASSERT_EQ(::unlink(path("mapped").c_str()), 0);
  source.add(fd.get());
  const auto key = memory_object_key(source.all[0].status.st_dev, source.all[0].status.st_ino);
  source.shared<MemoryObjectKeys>("memory-objects").keys.insert(key);
  const auto images = capture_all(source);
  EXPECT_EQ(std::string(images[0].state.begin(), images[0].state.end()).find("content\x93"), std::string::npos);
  EXPECT_FALSE(file_kind.build(images[0].state, destination));
  Fd object = open("object", O_RDWR | O_CREAT);
  const int number = object.get();
  destination.shared<MemoryObjects>("memory-objects").objects[key] = std::move(object);
  build_all(images, destination);
  EXPECT_EQ(link_of(destination.built(0)), link_of(number));
  EXPECT_EQ(::lseek(destination.built(0), 0, SEEK_CUR), 7);
}

/// What of an image a file is opened by.
struct Forged {
  std::string path, carrier = "root";
  std::uint32_t mode = 0;
  int flags = 0;
  bool deleted = false;
  MSGPACK_DEFINE_MAP(path, carrier, mode, flags, deleted)
};

TEST_F(File, NothingButFilesAndDirectoriesIsOpened) {
  ASSERT_EQ(::mkfifo(path("fifo").c_str(), 0600), 0);
  // Without its other ends the open below would never return.
  const Fd others = open("fifo", O_RDWR | O_NONBLOCK);
  for (const int access : {O_RDONLY, O_WRONLY}) {
    const auto built =
        file_kind.build(image::pack(Forged{path("fifo"), "root", S_IFIFO | 0600, access, false}), destination);
    ASSERT_FALSE(built);
    EXPECT_EQ(built.error().kind, ErrorKind::invalid) << built.error().message();
  }
  const Forged device{"/dev/null", "kernel", S_IFCHR | 0666, O_RDONLY, false};
  EXPECT_FALSE(file_kind.build(image::pack(device), destination));
  // Without opening it, it may be anything.
  EXPECT_TRUE(file_kind.build(image::pack(Forged{path("fifo"), "root", S_IFIFO | 0600, O_PATH, false}), destination));
}

TEST_F(File, OtherMountIsRefused) {
  const Fd other{::open("/dev/pts", O_RDONLY | O_CLOEXEC)};
  ASSERT_TRUE(other);
  source.add(other.get());
  const auto refused = file_kind.preflight(source.all[0], source);
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().kind, ErrorKind::refused);
}

TEST_F(File, LocksOfTheDescription) {
  write("a", "0123456789");
  Fd flocked = open("a", O_RDWR), ranged = open("a", O_RDWR);
  ASSERT_EQ(::flock(flocked.get(), LOCK_EX), 0);
  struct flock range {};
  range.l_type = F_WRLCK;
  range.l_start = 3;
  range.l_len = 4;
  ASSERT_EQ(::fcntl(ranged.get(), F_OFD_SETLK, &range), 0);
  source.add(flocked.get());
  source.add(ranged.get());
  const auto images = capture_all(source);
  // The copies need the locks that the originals have.
  source.all.clear();
  flocked.reset();
  ranged.reset();
  build_all(images, destination);
  const Fd other = open("a", O_RDWR);
  EXPECT_EQ(::flock(other.get(), LOCK_SH | LOCK_NB), -1);
  EXPECT_EQ(errno, EWOULDBLOCK);
  struct flock asked {};
  asked.l_type = F_WRLCK;
  ASSERT_EQ(::fcntl(other.get(), F_OFD_GETLK, &asked), 0);
  EXPECT_EQ(asked.l_start, 3);
  EXPECT_EQ(asked.l_len, 4);
}

TEST_F(File, LocksOfAProcessAreFoundWithTheirRange) {
  write("a", "0123456789");
  const Fd fd = open("a", O_RDWR);
  struct flock range {};
  range.l_type = F_RDLCK;
  range.l_start = 2;
  ASSERT_EQ(::fcntl(fd.get(), F_SETLK, &range), 0);
  source.add(fd.get());
  const auto locks = capture_locks(source.all[0], source).value();
  ASSERT_EQ(locks.size(), 1u);
  EXPECT_EQ(locks[0].kind, "posix");
  EXPECT_FALSE(locks[0].exclusive);
  EXPECT_EQ(locks[0].start, 2u);
  EXPECT_EQ(locks[0].length, 0u);
  EXPECT_EQ(locks[0].holder.number, fd.get());
}

TEST_F(File, LeaseIsRefused) {
  write("a", "x");
  const Fd fd = open("a", O_RDONLY);
  ASSERT_EQ(::fcntl(fd.get(), F_SETLEASE, F_RDLCK), 0);
  source.add(fd.get());
  EXPECT_FALSE(file_kind.preflight(source.all[0], source));
  ::fcntl(fd.get(), F_SETLEASE, F_UNLCK);
}

TEST(Device, StatelessOnesMoveAndOthersAreRefused) {
  TestSource source;
  const Fd null{::open("/dev/null", O_RDWR | O_CLOEXEC)}, random{::open("/dev/urandom", O_RDONLY | O_CLOEXEC)};
  source.add(null.get());
  source.add(random.get());
  TestDestination destination;
  build_all(capture_all(source), destination);
  EXPECT_EQ(link_of(destination.built(0)), "/dev/null");
  EXPECT_EQ(::fcntl(destination.built(0), F_GETFL), ::fcntl(null.get(), F_GETFL));
  EXPECT_EQ(read_some(destination.built(1), 16).size(), 16u);
  const Fd terminals{::open("/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC)};
  TestSource other;
  other.add(terminals.get());
  EXPECT_EQ(kind_of(other.all[0]), &device_kind);
  EXPECT_FALSE(device_kind.preflight(other.all[0], other));
}

TEST(Memfd, ContentNameSealsAndTwoDescriptions) {
  const Fd fd{::memfd_create("my name", MFD_CLOEXEC | MFD_ALLOW_SEALING)};
  ASSERT_EQ(::write(fd.get(), "in memory", 9), 9);
  ASSERT_EQ(::ftruncate(fd.get(), 1 << 20), 0);
  const Fd reader = reopen(fd.get(), O_RDONLY).value();
  ASSERT_EQ(::fcntl(fd.get(), F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_GROW), 0);
  TestSource source;
  source.add(fd.get());
  source.add(reader.get());
  const auto images = capture_all(source);
  ASSERT_EQ(images[0].kind, "memfd");
  TestDestination destination;
  build_all(images, destination);
  EXPECT_EQ(link_of(destination.built(0)), "/memfd:my name (deleted)");
  EXPECT_EQ(::lseek(destination.built(0), 0, SEEK_CUR), 9);
  EXPECT_EQ(read_some(destination.built(1), 9), "in memory");
  EXPECT_EQ(::fcntl(destination.built(0), F_GET_SEALS), 0);
  for (ObjectId id = 0; id < 2; ++id)
    ASSERT_TRUE(memfd_kind.open(images[id].state, destination.built(id), destination));
  EXPECT_EQ(::fcntl(destination.built(0), F_GET_SEALS), F_SEAL_WRITE | F_SEAL_GROW);
  EXPECT_EQ(::pwrite(destination.built(0), "x", 1, 0), -1);
  struct stat status {};
  ASSERT_EQ(::fstat(destination.built(1), &status), 0);
  EXPECT_EQ(status.st_size, 1 << 20);
}

TEST(Memfd, UnsealableStaysSo) {
  const Fd fd{::memfd_create("plain", MFD_CLOEXEC)};
  TestSource source;
  source.add(fd.get());
  const auto images = capture_all(source);
  TestDestination destination;
  build_all(images, destination);
  ASSERT_TRUE(memfd_kind.open(images[0].state, destination.built(0), destination));
  EXPECT_EQ(::fcntl(destination.built(0), F_GET_SEALS), F_SEAL_SEAL);
}

}  // namespace
}  // namespace godwit::objects::testing
