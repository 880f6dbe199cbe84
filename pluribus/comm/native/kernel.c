/* Loops of the wire: quantise, rotate, checksum. Compiled at first use by build.py.
 *
 * Every result is the same to the bit as the torch code beside it: no contraction to fused
 * multiply-add (-ffp-contract=off), no reassociation, round half to even by the add-and-subtract
 * trick, which every instruction set does alike. Blocks stay in the first-level cache.
 */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "scales and headers travel little-endian"
#endif

#define BLOCK 256
#define MAGIC 12582912.0f /* 1.5 * 2^23: adding it leaves the rounded integer in the low bits */
#define TINY 0x0d800000u  /* bits of 2^-100: below it a block's scale would be denormal */
#define NON_FINITE 0x7f800000u
#define INLINE static inline __attribute__((always_inline))

INLINE uint32_t bits_of(float x) { uint32_t b; memcpy(&b, &x, 4); return b; }
INLINE float float_of(uint32_t b) { float x; memcpy(&x, &b, 4); return x; }

/* Largest |v|, as bits: integers of absolute floats order like the floats, and NaN comes last. */
INLINE uint32_t largest(const float *v, size_t n) {
    int32_t m = 0;
    for (size_t i = 0; i < n; i++) {
        int32_t b = (int32_t)(bits_of(v[i]) & 0x7fffffffu);
        m = b > m ? b : m;
    }
    return (uint32_t)m;
}

INLINE int32_t rounded(float x) { return (int32_t)bits_of(x + MAGIC) - 0x4b400000; }

/* One block: v = x + residual, q = round(v * 127 / max|v|), residual = v - q * scale. */
INLINE void int8_block(const float *x, float *r, float *scale, int8_t *q, size_t n) {
    float v[BLOCK];
    if (r) for (size_t i = 0; i < n; i++) v[i] = x[i] + r[i];
    else memcpy(v, x, n * sizeof(float));
    uint32_t top = largest(v, n);
    if (top >= NON_FINITE) { /* poison: every rank decodes NaN; the residual stays as it was */
        *scale = float_of(0x7fc00000u);
        memset(q, 0, n);
        return;
    }
    if (top < TINY) { /* too small to scale: all of it waits in the residual */
        *scale = 0.0f;
        memset(q, 0, n);
        if (r) memcpy(r, v, n * sizeof(float));
        return;
    }
    float s = float_of(top) / 127.0f, inverse = 127.0f / float_of(top);
    *scale = s;
    for (size_t i = 0; i < n; i++) q[i] = (int8_t)rounded(v[i] * inverse);
    if (r) for (size_t i = 0; i < n; i++) r[i] = v[i] - (float)q[i] * s;
}

void pluribus_int8_encode(const float *x, float *r, float *scales, int8_t *q, size_t n) {
    size_t b = 0, i = 0;
    for (; i + BLOCK <= n; i += BLOCK, b++)
        int8_block(x + i, r ? r + i : 0, scales + b, q + i, BLOCK);
    if (i < n) int8_block(x + i, r ? r + i : 0, scales + b, q + i, n - i);
}

INLINE void int8_spread(float s, const int8_t *q, float *out, size_t n, int add) {
    if (add) for (size_t i = 0; i < n; i++) out[i] = out[i] + (float)q[i] * s;
    else for (size_t i = 0; i < n; i++) out[i] = (float)q[i] * s;
}

void pluribus_int8_decode(const float *scales, const int8_t *q, float *out, size_t n, int add) {
    size_t b = 0, i = 0;
    for (; i + BLOCK <= n; i += BLOCK, b++) int8_spread(scales[b], q + i, out + i, BLOCK, add);
    if (i < n) int8_spread(scales[b], q + i, out + i, n - i, add);
}

/* Two decoded and added in one pass; the bits of decoding one and adding the other. */
INLINE void int8_two(float s, const int8_t *q, float t, const int8_t *p, float *out, size_t n) {
    for (size_t i = 0; i < n; i++) out[i] = (float)q[i] * s + (float)p[i] * t;
}

void pluribus_int8_decode_sum(
    const float *scales, const int8_t *q, const float *others, const int8_t *p, float *out, size_t n
) {
    size_t b = 0, i = 0;
    for (; i + BLOCK <= n; i += BLOCK, b++)
        int8_two(scales[b], q + i, others[b], p + i, out + i, BLOCK);
    if (i < n) int8_two(scales[b], q + i, others[b], p + i, out + i, n - i);
}

/* splitmix64 (Steele et al. 2014, OOPSLA): word w of the signs that the seed stands for. */
INLINE uint64_t sign_word(uint64_t seed, uint64_t w) {
    uint64_t z = seed + (w + 1) * 0x9e3779b97f4a7c15ull;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

INLINE void flip(float *v, uint64_t seed, size_t block) {
    for (size_t w = 0; w < BLOCK / 64; w++) {
        uint64_t signs = sign_word(seed, block * (BLOCK / 64) + w);
        for (size_t i = 0; i < 64; i++) {
            uint32_t sign = (uint32_t)((signs >> i) & 1u) << 31;
            v[w * 64 + i] = float_of(bits_of(v[w * 64 + i]) ^ sign);
        }
    }
}

/* Walsh-Hadamard in place, not normalised; width 128 first, as the torch code does. */
INLINE void rotate(float *v) {
    for (size_t half = BLOCK / 2; half >= 8; half /= 2)
        for (size_t start = 0; start < BLOCK; start += 2 * half)
            for (size_t i = start; i < start + half; i++) {
                float a = v[i], b = v[i + half];
                v[i] = a + b;
                v[i + half] = a - b;
            }
    for (size_t start = 0; start < BLOCK; start += 8) { /* the last three steps, in registers */
        float *p = v + start, t[8], u[8];
        for (size_t i = 0; i < 4; i++) { t[i] = p[i] + p[i + 4]; t[i + 4] = p[i] - p[i + 4]; }
        for (size_t h = 0; h < 8; h += 4)
            for (size_t i = 0; i < 2; i++) {
                u[h + i] = t[h + i] + t[h + i + 2];
                u[h + i + 2] = t[h + i] - t[h + i + 2];
            }
        for (size_t i = 0; i < 8; i += 2) { p[i] = u[i] + u[i + 1]; p[i + 1] = u[i] - u[i + 1]; }
    }
}

INLINE void int4_spread(float s, const uint8_t *q, float *v, uint64_t seed, size_t block) {
    for (size_t i = 0; i < BLOCK / 2; i++) {
        v[i] = (float)((int32_t)(q[i] & 15u) - 8) * s;
        v[i + BLOCK / 2] = (float)((int32_t)(q[i] >> 4) - 8) * s;
    }
    rotate(v);
    flip(v, seed, block);
}

/* The scale carries the 1/256 of the two unnormalised rotations: a power of two, hence exact. */
void pluribus_int4_encode(
    const float *x, float *r, float *scales, uint8_t *q, size_t n, uint64_t seed
) {
    float v[BLOCK], y[BLOCK];
    for (size_t i = 0, b = 0; i < n; i += BLOCK, b++, q += BLOCK / 2) {
        size_t m = n - i < BLOCK ? n - i : BLOCK;
        memset(v, 0, sizeof v);
        if (r) for (size_t j = 0; j < m; j++) v[j] = x[i + j] + r[i + j];
        else memcpy(v, x + i, m * sizeof(float));
        memcpy(y, v, sizeof v);
        flip(y, seed, b);
        rotate(y);
        uint32_t top = largest(y, BLOCK);
        if (top >= NON_FINITE || top < TINY) {
            scales[b] = top < TINY ? 0.0f : float_of(0x7fc00000u);
            memset(q, 0x88, BLOCK / 2);
            if (r && top < TINY) memcpy(r + i, v, m * sizeof(float));
            continue;
        }
        float inverse = 7.0f / float_of(top);
        scales[b] = float_of(top) / 7.0f * (1.0f / BLOCK);
        for (size_t j = 0; j < BLOCK / 2; j++) {
            int32_t low = rounded(y[j] * inverse) + 8;
            int32_t high = rounded(y[j + BLOCK / 2] * inverse) + 8;
            q[j] = (uint8_t)(low | high << 4);
        }
        if (!r) continue;
        int4_spread(scales[b], q, y, seed, b);
        for (size_t j = 0; j < m; j++) r[i + j] = v[j] - y[j];
    }
}

void pluribus_int4_decode(
    const float *scales, const uint8_t *q, float *out, size_t n, uint64_t seed, int add
) {
    float v[BLOCK];
    for (size_t i = 0, b = 0; i < n; i += BLOCK, b++, q += BLOCK / 2) {
        size_t m = n - i < BLOCK ? n - i : BLOCK;
        int4_spread(scales[b], q, v, seed, b);
        if (add) for (size_t j = 0; j < m; j++) out[i + j] = out[i + j] + v[j];
        else memcpy(out + i, v, m * sizeof(float));
    }
}

/* CRC-32C (Castagnoli; RFC 3720 appendix B.4): by instruction where there is one. */
#if defined(__SSE4_2__)
#include <nmmintrin.h>
#define CRC8(c, p) ((uint32_t)_mm_crc32_u8(c, *(p)))
INLINE uint32_t crc64(uint32_t c, const uint8_t *p) {
    uint64_t word;
    memcpy(&word, p, 8);
    return (uint32_t)_mm_crc32_u64(c, word);
}
#elif defined(__ARM_FEATURE_CRC32)
#include <arm_acle.h>
#define CRC8(c, p) __crc32cb(c, *(p))
INLINE uint32_t crc64(uint32_t c, const uint8_t *p) {
    uint64_t word;
    memcpy(&word, p, 8);
    return __crc32cd(c, word);
}
#else
static uint32_t table[256];
__attribute__((constructor)) static void fill_table(void) {
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t c = i;
        for (int k = 0; k < 8; k++) c = c & 1 ? c >> 1 ^ 0x82f63b78u : c >> 1;
        table[i] = c;
    }
}
#define CRC8(c, p) (table[((c) ^ *(p)) & 255u] ^ (c) >> 8)
INLINE uint32_t crc64(uint32_t c, const uint8_t *p) {
    for (int k = 0; k < 8; k++) c = CRC8(c, p + k);
    return c;
}
#endif

/* An instruction takes three cycles but a new one may begin in each: three lanes side by side, then
 * joined. A checksum is linear over GF(2), so that of a + b is the one of a, moved on by as many zero
 * bytes as b has, XORed with the one of b (Gopal et al., Intel 2011). */
#define CRC_LANE 256
static uint32_t moved[4][256]; /* each byte of a checksum, CRC_LANE zero bytes later */

static uint32_t crc_apply(const uint32_t *columns, uint32_t c) {
    uint32_t out = 0;
    for (; c; c >>= 1, columns++) if (c & 1) out ^= *columns;
    return out;
}

__attribute__((constructor)) static void fill_moved(void) {
    uint32_t one[32] = {0x82f63b78u}, two[32]; /* a zero bit, squared until it is a lane */
    for (int k = 1; k < 32; k++) one[k] = 1u << (k - 1);
    for (size_t bits = 1; bits < 8 * CRC_LANE; bits *= 2) {
        for (int k = 0; k < 32; k++) two[k] = crc_apply(one, one[k]);
        memcpy(one, two, sizeof one);
    }
    for (int k = 0; k < 4; k++)
        for (uint32_t i = 0; i < 256; i++) moved[k][i] = crc_apply(one, i << 8 * k);
}

INLINE uint32_t crc_move(uint32_t c) {
    return moved[0][c & 255] ^ moved[1][c >> 8 & 255] ^ moved[2][c >> 16 & 255] ^ moved[3][c >> 24];
}

uint32_t pluribus_crc32c(uint32_t crc, const uint8_t *p, size_t n) {
    uint32_t c = ~crc;
    for (; n >= 3 * CRC_LANE; n -= 3 * CRC_LANE, p += 3 * CRC_LANE) {
        uint32_t second = 0, third = 0;
        for (const uint8_t *q = p; q < p + CRC_LANE; q += 8) {
            c = crc64(c, q);
            second = crc64(second, q + CRC_LANE);
            third = crc64(third, q + 2 * CRC_LANE);
        }
        c = crc_move(crc_move(c) ^ second) ^ third;
    }
    for (; n >= 8; n -= 8, p += 8) c = crc64(c, p);
    for (; n; n--, p++) c = CRC8(c, p);
    return ~c;
}

/* Datagrams of the UDP transport; the layout is in transports/datagram.py. */
#define HEAD 32
#define CRC_AT 28

INLINE void ring_read(uint8_t *to, const uint8_t *ring, size_t size, uint64_t at, size_t n) {
    size_t start = (size_t)(at % size), first = size - start < n ? size - start : n;
    memcpy(to, ring + start, first);
    memcpy(to + first, ring, n - first);
}

INLINE void ring_write(uint8_t *ring, size_t size, uint64_t at, const uint8_t *from, size_t n) {
    size_t start = (size_t)(at % size), first = size - start < n ? size - start : n;
    memcpy(ring + start, from, first);
    memcpy(ring, from + first, n - first);
}

/* Cuts ring[at, at + n) into datagrams of at most `piece` payload bytes, one behind the other. */
size_t pluribus_datagrams(
    uint8_t *out, const uint8_t *head, const uint8_t *ring, size_t size, uint64_t at, size_t n,
    size_t piece
) {
    uint8_t *p = out;
    while (n) {
        uint16_t m = (uint16_t)(n < piece ? n : piece);
        memcpy(p, head, HEAD);
        memcpy(p + 10, &m, 2);
        memcpy(p + 16, &at, 8);
        ring_read(p + HEAD, ring, size, at, m);
        uint32_t crc = pluribus_crc32c(pluribus_crc32c(0, p, CRC_AT), p + HEAD, m);
        memcpy(p + CRC_AT, &crc, 4);
        p += HEAD + m;
        at += m;
        n -= m;
    }
    return (size_t)(p - out);
}

/* Reads datagrams that lie `stride` apart (the last may be shorter). Payloads of kind `data` within
 * [low, high) go into the ring. found: per datagram (status or kind, position, size); the status
 * is 0 for damaged, 255 for another connection's or epoch's. Returns how many there were. */
size_t pluribus_take(
    const uint8_t *batch, size_t n, size_t stride, const uint8_t *head, uint8_t data,
    uint8_t *ring, size_t size, uint64_t low, uint64_t high, uint64_t *found
) {
    size_t count = 0;
    for (size_t start = 0; start < n; start += stride, count++, found += 3) {
        const uint8_t *p = batch + start;
        size_t have = n - start < stride ? n - start : stride;
        uint16_t m = 0;
        uint32_t crc = 0;
        found[0] = found[1] = found[2] = 0;
        if (have < HEAD) continue;
        memcpy(&m, p + 10, 2);
        memcpy(&crc, p + CRC_AT, 4);
        if (have != (size_t)HEAD + m) continue;
        if (crc != pluribus_crc32c(pluribus_crc32c(0, p, CRC_AT), p + HEAD, m)) continue;
        if (memcmp(p, head, 8) || memcmp(p + 12, head + 12, 4)) {
            found[0] = 255;
            continue;
        }
        found[0] = p[8];
        memcpy(found + 1, p + 16, 8);
        found[2] = m;
        if (p[8] != data) continue;
        if (found[1] < low || found[1] + m > high || found[1] + m < found[1]) continue;
        ring_write(ring, size, found[1], p + HEAD, m);
    }
    return count;
}
