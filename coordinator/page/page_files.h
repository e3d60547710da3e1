#pragma once

namespace ringmaster::coordinator {

// The texts of the files beside this one, which CMake puts into the program.
extern const char kPageHtml[];
extern const char kPageCss[];
extern const char kPageJs[];

}  // namespace ringmaster::coordinator
