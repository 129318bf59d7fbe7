/* ptx_conformance [--seed N] [--save FILE] [--golden FILE] [ORDER...]
 *
 * Runs every case (conformance.h) and compares with plain loops; --save writes the outputs,
 * --golden compares them with a file that another run wrote (a device's, for the emulator). --seed:
 * of the inputs (1); ORDER: the emulator's seeds of thread order (0), ignored on a device. Exit
 * code: 0 all agree, 1 something is WRONG, 64 usage, 65 the golden file is another's, 70 CUDA
 * failed.
 *
 * The file: text lines `switchyard ptx 1`, `side NAME`, `seed N`, then per case a line
 * `BYTES TOLERANCE HASH NAME` and the bytes.
 */
#include "conformance.h"

static uint64_t hash_of(const std::vector<uint8_t> &bytes)
{
    uint64_t hash = 0xcbf29ce484222325u;
    for (uint8_t byte : bytes)
        hash = (hash ^ byte) * 0x100000001b3u;
    return hash;
}

static void record(struct conformance *c, const std::string &name, const void *got, size_t bytes,
                   double tolerance)
{
    must(cudaGetLastError(), name.c_str());
    struct conformance_result r = {name, tolerance, {}};
    r.bytes.assign((const uint8_t *)got, (const uint8_t *)got + bytes);
    c->results.push_back(r);
}

static void print_hex(const char *what, const uint8_t *p, size_t unit)
{
    printf(" %s 0x", what);
    for (size_t i = unit; i-- > 0;)
        printf("%02x", p[i]);
}

void conformance_exact(struct conformance *c, const std::string &name, const void *got,
                       const void *want, size_t bytes, size_t unit)
{
    record(c, name, got, bytes, 0);
    const uint8_t *a = (const uint8_t *)got, *b = (const uint8_t *)want;
    size_t wrong = 0;
    for (size_t i = 0; i < bytes; i += unit)
        if (memcmp(a + i, b + i, unit) != 0 && wrong++ == 0) {
            printf("%s: WRONG at %zu:", name.c_str(), i / unit);
            print_hex("got", a + i, unit);
            print_hex("want", b + i, unit);
        }
    if (wrong)
        printf(", %zu of %zu wrong\n", wrong, bytes / unit);
    c->right = c->right && !wrong;
}

void conformance_close(struct conformance *c, const std::string &name,
                       const std::vector<float> &got, const std::vector<double> &want,
                       double tolerance)
{
    record(c, name, got.data(), got.size() * sizeof(float), tolerance);
    c->right = same(name.c_str(), got.data(), want.data(), want.size(), tolerance) && c->right;
}

static bool save(const struct conformance *c, const char *path)
{
    FILE *f = fopen(path, "wb");
    if (!f)
        return false;
    fprintf(f, "switchyard ptx 1\nside %s\nseed %llu\n", SIDE_NAME, (unsigned long long)c->seed);
    for (const conformance_result &r : c->results) {
        fprintf(f, "%zu %.17g %016llx %s\n", r.bytes.size(), r.tolerance,
                (unsigned long long)hash_of(r.bytes), r.name.c_str());
        fwrite(r.bytes.data(), 1, r.bytes.size(), f);
    }
    return (ferror(f) == 0) & (fclose(f) == 0);
}

/* Compares a case with the golden's bytes; `most`: the largest difference of floats so far. */
static bool agree(const struct conformance_result *r, const std::vector<uint8_t> &golden,
                  double *most)
{
    if (r->tolerance > 0) {
        size_t count = golden.size() / sizeof(float);
        std::vector<float> a(count), b(count);
        memcpy(a.data(), r->bytes.data(), count * sizeof(float));
        memcpy(b.data(), golden.data(), count * sizeof(float));
        for (size_t i = 0; i < count; i++)
            *most = fmax(*most, fabs((double)a[i] - (double)b[i]) / (1 + fabs((double)b[i])));
        std::vector<double> want(b.begin(), b.end());
        return same((r->name + ", golden").c_str(), a.data(), want.data(), count, r->tolerance);
    }
    for (size_t i = 0; i < golden.size(); i++)
        if (r->bytes[i] != golden[i]) {
            printf("%s: WRONG against the golden at byte %zu: 0x%02x, want 0x%02x\n",
                   r->name.c_str(), i, r->bytes[i], golden[i]);
            return false;
        }
    return true;
}

static int compare(const struct conformance *c, const char *path)
{
    char side[32], name[200];
    unsigned long long seed, hash;
    double tolerance, most = 0;
    size_t bytes, cases = 0;
    bool right = true;
    FILE *f = fopen(path, "rb");
    if (!f || fscanf(f, "switchyard ptx 1\nside %31s\nseed %llu\n", side, &seed) != 2 ||
        seed != c->seed) {
        fprintf(stderr, "%s: not goldens of seed %llu\n", path, (unsigned long long)c->seed);
        if (f)
            fclose(f);
        return 65;
    }
    while (fscanf(f, "%zu %lf %llx %199[^\n]", &bytes, &tolerance, &hash, name) == 4 &&
           fgetc(f) == '\n' && bytes <= 1 << 24) {
        std::vector<uint8_t> golden(bytes);
        if (fread(golden.data(), 1, bytes, f) != bytes || hash_of(golden) != hash)
            break;
        if (cases == c->results.size() || c->results[cases].name != name ||
            c->results[cases].bytes.size() != bytes) {
            fprintf(stderr, "%s: no such case here: %s; goldens of another version\n", path, name);
            fclose(f);
            return 65;
        }
        right = agree(&c->results[cases++], golden, &most) && right;
    }
    fclose(f);
    if (cases != c->results.size()) {
        fprintf(stderr, "%s: damaged, or goldens of another version: %zu cases of %zu\n", path,
                cases, c->results.size());
        return 65;
    }
    printf("goldens of %s: %zu cases, largest difference of fractions %.3g\n", side, cases, most);
    return right ? 0 : 1;
}

int main(int argc, char **argv)
{
    struct conformance c = {1, true, {}};
    const char *saved = nullptr, *golden = nullptr;
    std::vector<uint64_t> orders;
    for (int i = 1; i < argc; i++) {
        bool option = strncmp(argv[i], "--", 2) == 0;
        const char *value = option && i + 1 < argc ? argv[i + 1] : nullptr;
        if (!option)
            orders.push_back(strtoull(argv[i], nullptr, 0));
        else if (value && strcmp(argv[i], "--seed") == 0)
            c.seed = strtoull(argv[++i], nullptr, 0);
        else if (value && strcmp(argv[i], "--save") == 0)
            saved = argv[++i];
        else if (value && strcmp(argv[i], "--golden") == 0)
            golden = argv[++i];
        else {
            fprintf(stderr,
                    "usage: ptx_conformance [--seed N] [--save FILE] [--golden FILE] [ORDER...]\n");
            return 64;
        }
    }
#ifdef REAL_CUDA
    orders.clear();
#endif
    if (orders.empty())
        orders.push_back(0);
    side_set_hopper_fp8(getenv("EMU_HOPPER_FP8") != nullptr);
    for (uint64_t order : orders) {
        side_set_seed(order);
        c.results.clear();
        conformance_barriers(&c);
        conformance_convert(&c);
        conformance_copies(&c);
        conformance_matrix(&c);
        conformance_wgmma(&c);
    }
    printf("%zu cases on the %s: %s\n", c.results.size(), SIDE_NAME, c.right ? "ok" : "WRONG");
    if (saved && !save(&c, saved)) {
        fprintf(stderr, "%s: cannot write the goldens\n", saved);
        return 74;
    }
    int code = golden ? compare(&c, golden) : 0;
    return c.right ? code : 1;
}
