// The system's pages under large results: fresh ones, which would be faulted in one by one.
#pragma once

#include <cstdint>

namespace aim_fast {

// Has the pages of [begin, end) mapped at once, unless the middle one is there already: a part of a result of `whole`
// bytes. A hint: what lies there stays, and other threads may be writing beside it.
void map_pages(char* begin, char* end, int64_t whole);

}  // namespace aim_fast
