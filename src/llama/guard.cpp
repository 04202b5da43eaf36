// Calls a function, and catches what it throws: an exception of C++ that reaches Rust ends the process.
//
// Returns whether it threw nothing. If it did, `message` says what, in at most `size` bytes with the NUL.

#include <cstddef>
#include <cstdio>
#include <exception>

extern "C" bool nibble_guard(void (*call)(void *), void * data, char * message, std::size_t size) {
    try {
        call(data);
        return true;
    } catch (const std::exception & error) {
        std::snprintf(message, size, "%s", error.what());
    } catch (...) {
        std::snprintf(message, size, "something that is no exception was thrown");
    }
    return false;
}

// Throws, for the test.
extern "C" void nibble_throw(void) {
    struct Full : std::exception {
        const char * what() const noexcept override { return "no memory left"; }
    };
    throw Full();
}
