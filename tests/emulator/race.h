/* race: what the runtime tells ThreadSanitizer; all of it is nothing in other builds.
 *
 * The runtime is not instrumented, so its own accesses are invisible, and ordering exists only
 * where it says so: release before an arrival, acquire after the wait. Objects are bare addresses.
 */
#ifndef EMULATOR_RACE_H
#define EMULATOR_RACE_H

#include <stddef.h>

#ifdef EMU_TSAN
extern "C" {
void *__tsan_get_current_fiber();
void *__tsan_create_fiber(unsigned flags);
void __tsan_switch_to_fiber(void *fiber, unsigned flags);
void __tsan_acquire(void *object);
void __tsan_release(void *object);
void __tsan_read_range(void *address, size_t bytes);
void __tsan_write_range(void *address, size_t bytes);
}
enum { RACE_CHECKED = 1 };
static inline void race_acquire(const void *object)
{
    __tsan_acquire((void *)object);
}
static inline void race_release(const void *object)
{
    __tsan_release((void *)object);
}
static inline void race_read(const void *p, size_t bytes)
{
    __tsan_read_range((void *)p, bytes);
}
static inline void race_write(void *p, size_t bytes)
{
    __tsan_write_range(p, bytes);
}
static inline void *race_current()
{
    return __tsan_get_current_fiber();
}
/* A logical thread; it starts ordered after all that its creator did so far. */
static inline void race_create(void **fiber)
{
    if (!*fiber)
        *fiber = __tsan_create_fiber(1);
}
/* Continues as another logical thread, created if need be; 1: the switch orders nothing. */
static inline void race_switch(void **fiber)
{
    race_create(fiber);
    __tsan_switch_to_fiber(*fiber, 1);
}
#else
enum { RACE_CHECKED = 0 };
static inline void race_acquire(const void *)
{
}
static inline void race_release(const void *)
{
}
static inline void race_read(const void *, size_t)
{
}
static inline void race_write(void *, size_t)
{
}
static inline void *race_current()
{
    return nullptr;
}
static inline void race_create(void **)
{
}
static inline void race_switch(void **)
{
}
#endif

#endif
