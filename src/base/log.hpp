#pragma once

#include <spdlog/spdlog.h>

/// spdlog's default logger is the daemon's log. Lines name the pod they are about.
namespace godwit::log {
using spdlog::debug;
using spdlog::error;
using spdlog::info;
using spdlog::warn;
}  // namespace godwit::log
