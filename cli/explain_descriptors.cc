#include "cli/explain.h"

// The assembler reads the file that protoc wrote; no generated source is needed.
asm(".section .rodata\n"
    ".balign 16\n"
    "ringmaster_api_descriptors_begin:\n"
    ".incbin \"" API_DESCRIPTORS_PATH
    "\"\n"
    "ringmaster_api_descriptors_end:\n"
    ".byte 0\n"
    ".text\n");

extern "C" {
extern const char ringmaster_api_descriptors_begin[] __attribute__((visibility("hidden")));
extern const char ringmaster_api_descriptors_end[] __attribute__((visibility("hidden")));
}

namespace ringmaster::cli {

absl::string_view ApiDescriptors() {
  return {ringmaster_api_descriptors_begin,
          static_cast<size_t>(ringmaster_api_descriptors_end - ringmaster_api_descriptors_begin)};
}

}  // namespace ringmaster::cli
