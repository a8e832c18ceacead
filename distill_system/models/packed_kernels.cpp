// y = x W^T + b, where W is decoded from its packed rows on the way into registers. packed_kernels.py says what calls this.
//
// Two ways. `fused` takes a row as words, one in each lane of a vector: shifting all words moves the next code of each into its lowest bits, where a
// permutation of a table (or a conversion) makes it a weight. Nothing is shuffled or stored; instead x is brought into the order in which codes appear,
// once. Scales are multiplied in once for all codes of a word; where groups cut words, x comes twice, with zeros where the other group's codes are.
// What doesn't fit that - 3, 5, 6 and 7 bits, levels told one by one in groups, groups smaller than a word - is decoded into a buffer of a few rows.
//
// Each output is summed up by one thread, in an order that hangs neither on the number of threads nor on that of x's rows.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512F__) && defined(__AVX512BW__)
constexpr int LANES = 16;
#elif defined(__AVX2__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif
constexpr int ROWS = 4;  // outputs at a time: they share what is loaded of x, and their chains of additions don't wait for each other

typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef uint32_t Words __attribute__((vector_size(4 * LANES)));
typedef uint16_t Halves __attribute__((vector_size(4 * LANES)));

template <class T>
T load(const void* from) {
    T found;
    std::memcpy(&found, from, sizeof found);
    return found;
}

Floats floats(Words word) {
    typedef int32_t Ints __attribute__((vector_size(4 * LANES)));
    return __builtin_convertvector((Ints)word, Floats);
}

Words counting() {
    Words found;
    for (int lane = 0; lane < LANES; lane++) found[lane] = lane;
    return found;
}

// table[word], of the lowest bits of each.
Floats look_up(Floats table, Words word) {
#if defined(__AVX512F__) && defined(__AVX512BW__)
    return (Floats)_mm512_permutexvar_ps((__m512i)word, (__m512)table);
#elif defined(__AVX2__)
    return (Floats)_mm256_permutevar8x32_ps((__m256)table, (__m256i)word);
#else
    Floats found;
    for (int lane = 0; lane < LANES; lane++) found[lane] = table[word[lane] % LANES];
    return found;
#endif
}

// As many bytes as there are lanes, or twice as many, each in a field of its own.
Words widen_to_words(const uint8_t* from) {
#if defined(__AVX512F__) && defined(__AVX512BW__)
    return (Words)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)from));
#elif defined(__AVX2__)
    return (Words)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)from));
#else
    Words found;
    for (int lane = 0; lane < LANES; lane++) found[lane] = from[lane];
    return found;
#endif
}

Halves widen_to_halves(const uint8_t* from) {
#if defined(__AVX512F__) && defined(__AVX512BW__)
    return (Halves)_mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i*)from));
#elif defined(__AVX2__)
    return (Halves)_mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i*)from));
#else
    Halves found;
    for (int half = 0; half < 2 * LANES; half++) found[half] = from[half];
    return found;
#endif
}

// The lowest byte of each word, or the next one.
template <int PLACE>
Words byte_of(Words word) {
#if defined(__AVX512F__) && defined(__AVX512BW__)
    const __m512i from = _mm512_add_epi32(_mm512_set4_epi32(12, 8, 4, 0), _mm512_set1_epi32(int(0x80808000u) + PLACE));
    return (Words)_mm512_shuffle_epi8((__m512i)word, from);
#else
    return (word >> (8 * PLACE)) & 255;
#endif
}

// What three times a fraction of 2^16 has before its point.
Halves thirds(Halves fraction) {
#if defined(__AVX512F__) && defined(__AVX512BW__)
    return (Halves)_mm512_mulhi_epu16((__m512i)fraction, _mm512_set1_epi16(3));
#elif defined(__AVX2__)
    return (Halves)_mm256_mulhi_epu16((__m256i)fraction, _mm256_set1_epi16(3));
#else
    return -(Halves)(fraction > 21845) - (Halves)(fraction > 43690);
#endif
}

typedef float Four __attribute__((vector_size(16)));
typedef int32_t Places __attribute__((vector_size(16)));

Four fold(Floats sums) {
    Four part[LANES / 4];
    std::memcpy(part, &sums, sizeof part);
    for (int count = LANES / 4; count > 1; count /= 2)
        for (int i = 0; i < count / 2; i++) part[i] += part[i + count / 2];
    return part[0];
}

#if defined(__clang__)
#define PICK(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define PICK(a, b, ...) __builtin_shuffle(a, b, Places{__VA_ARGS__})
#endif

// The sums of the lanes of four vectors.
Four totals(const Floats (&sums)[4]) {
    const Four a = fold(sums[0]), b = fold(sums[1]), c = fold(sums[2]), d = fold(sums[3]);
    const Four ab = PICK(a, b, 0, 4, 1, 5) + PICK(a, b, 2, 6, 3, 7), cd = PICK(c, d, 0, 4, 1, 5) + PICK(c, d, 2, 6, 3, 7);
    return PICK(ab, cd, 0, 1, 4, 5) + PICK(ab, cd, 2, 3, 6, 7);
}

}  // namespace

extern "C" {

// As `Layout` in packed_kernels.py.
struct Matrix {
    const uint8_t* packed;  // [outputs, row_bytes]
    const float* scale;  // [G], or null
    const float* zero;  // [G] or [1], with scale
    const float* levels;  // [G, count], without
    int64_t outputs, inputs, row_bytes;
    int64_t count;  // of levels
    int64_t bits;  // of a code; 0: base 3, five codes a byte
    int64_t groups;  // in a row
    int64_t row_step;  // from a row's first grid to the next row's: 0 where all rows share one
    int64_t zero_step;  // 0 where all grids share their zero
};

}  // extern "C"

namespace {

// How words are taken apart, two codes at a time; above a code's own bits there is anything.
template <int BITS>
struct Bits {
    static constexpr int WORD = 4, CODES = 32 / BITS;  // bytes of a word, codes in it
    static constexpr uint32_t MASK = (1u << BITS) - 1;
    static Words clean(Words code) { return BITS == 8 ? code : code & MASK; }
    static int64_t place(int64_t turn) { return turn; }  // in the word, of the code that comes as number `turn`
    Words word;
    void open(const uint8_t* from) { word = load<Words>(from); }
    void next(Words& low, Words& high) {
        low = BITS == 8 ? byte_of<0>(word) : word;
        high = BITS == 8 ? byte_of<1>(word) : word >> BITS;
        word >>= 2 * BITS % 32;
    }
};

// Two bytes a word. A byte as a fraction: 270 / 65536 is 1 / 243 and a little, little enough for 242 of them. Its digits come out highest first.
struct Base3 {
    static constexpr int WORD = 2, CODES = 10;
    static constexpr uint32_t MASK = 3;
    static Words clean(Words code) { return code & MASK; }
    static int64_t place(int64_t turn) { return 5 * (turn % 2) + 4 - turn / 2; }
    Halves fraction;
    void open(const uint8_t* from) { fraction = widen_to_halves(from) * 270; }
    void next(Words& low, Words& high) {
        low = (Words)thirds(fraction), high = low >> 16;
        fraction *= 3;
    }
};

// Weights of codes, but for the scale: from a table that all groups of a row share, or computed.
struct Table {
    Floats table;
    template <class Codes>
    void set(const Matrix& m, int64_t grid) {
        const Words code = counting() & Codes::MASK;
        if (!m.levels) table = floats(code) - m.zero[grid * m.zero_step];
        else for (int i = 0; i < LANES; i++) table[i] = m.levels[grid * m.count + std::min<int64_t>(code[i], m.count - 1)];
    }
    void zeros(Floats) {}
    template <class Codes>
    Floats of(Words code) const { return look_up(table, code); }
};

struct Computed {
    Floats zero;
    template <class Codes>
    void set(const Matrix& m, int64_t grid) { zero = Floats{} + m.zero[grid * m.zero_step]; }
    void zeros(Floats lanes) { zero = lanes; }
    template <class Codes>
    Floats of(Words code) const { return floats(Codes::clean(code)) - zero; }
};

// Whose scale a word has: the row's (or the matrix's), its group's, or those of the two groups that it may lie in.
enum Sharing { ROW, GROUP, PAIR };

// One of ROWS outputs.
struct Output {
    const uint8_t* bytes;
    const float *scale, *zero;  // of its first group; more may be read than there are groups
    int64_t grid;
};

template <class Codes, Sharing SHARING>
struct Shape {
    static constexpr int COPIES = SHARING == PAIR ? 2 : 1;  // of each row of x
    static constexpr int64_t BLOCK = Codes::WORD * LANES, STEP = Codes::CODES * LANES;  // bytes and codes of a vector of words
    int64_t blocks, line, size;  // line: floats of an arranged row of x; size: codes of a group
    std::vector<int64_t> first;  // group of each block's first code
    std::vector<Words> lane[COPIES];  // and of each lane's first code, counted from there; of the second copy, the one after that
    explicit Shape(const Matrix& m)
        : blocks((m.row_bytes + BLOCK - 1) / BLOCK), line(blocks * STEP), size(m.inputs / std::max<int64_t>(m.groups, 1)) {
        for (int64_t b = 0; SHARING != ROW && b < blocks; b++) {
            first.push_back(std::min(b * STEP / size, m.groups - 1));
            for (int copy = 0; copy < COPIES; copy++) {
                Words found;
                for (int i = 0; i < LANES; i++)
                    found[i] = std::min((b * STEP + i * Codes::CODES) / size + copy, m.groups - 1) - first[b];
                lane[copy].push_back(found);
            }
        }
    }
    void arrange(const Matrix& m, const float* x, float* into) const {
        for (int64_t b = 0; b < blocks; b++)
            for (int64_t turn = 0; turn < Codes::CODES; turn++, into += LANES)
                for (int64_t i = 0, from = b * STEP + Codes::place(turn); i < LANES; i++, from += Codes::CODES) {
                    const float found = from < m.inputs ? x[from] : 0.0f;
                    into[i] = found;
                    if (SHARING != PAIR) continue;
                    const bool second = from / size != (b * STEP + i * Codes::CODES) / size;
                    into[i] = second ? 0.0f : found;
                    into[line + i] = second ? found : 0.0f;
                }
    }
};

// ROWS outputs of N rows of x.
template <class Codes, class Values, Sharing SHARING, int N>
void fused(const Matrix& m, const Shape<Codes, SHARING>& shape, const Output* output, const float* x, Four* sums) {
    constexpr int COPIES = Shape<Codes, SHARING>::COPIES;
    Floats sum[N][ROWS] = {};
    Values values[ROWS];
    for (int r = 0; r < ROWS; r++) values[r].template set<Codes>(m, output[r].grid);
    for (int64_t b = 0; b < shape.blocks; b++) {
        Codes codes[ROWS];
        Floats part[ROWS][N][COPIES];
        for (int r = 0; r < ROWS; r++) {
            codes[r].open(output[r].bytes + b * shape.BLOCK);
            if (SHARING == GROUP && m.zero_step)
                values[r].zeros(look_up(load<Floats>(output[r].zero + shape.first[b]), shape.lane[0][b]));
            for (int n = 0; n < N; n++)
                for (int copy = 0; copy < COPIES; copy++) part[r][n][copy] = SHARING == ROW ? sum[n][r] : Floats{};
        }
        for (int64_t turn = 0; turn < Codes::CODES; turn += 2, x += 2 * LANES)
            for (int r = 0; r < ROWS; r++) {
                Words low, high;
                codes[r].next(low, high);
                const Floats one = values[r].template of<Codes>(low), other = values[r].template of<Codes>(high);
                for (int n = 0; n < N; n++)
                    for (int copy = 0; copy < COPIES; copy++) {
                        const float* from = x + (n * COPIES + copy) * shape.line;
                        part[r][n][copy] += one * load<Floats>(from);
                        part[r][n][copy] += other * load<Floats>(from + LANES);
                    }
            }
        for (int r = 0; r < ROWS; r++) {
            if (SHARING == ROW) {
                for (int n = 0; n < N; n++) sum[n][r] = part[r][n][0];
                continue;
            }
            const Floats scales = load<Floats>(output[r].scale + shape.first[b]);
            for (int copy = 0; copy < COPIES; copy++) {
                const Floats scale = look_up(scales, shape.lane[copy][b]);
                for (int n = 0; n < N; n++) sum[n][r] += part[r][n][copy] * scale;
            }
        }
    }
    Four scale = Four{} + 1.0f;
    for (int r = 0; r < ROWS && SHARING == ROW && !m.levels; r++) scale[r] = *output[r].scale;
    for (int n = 0; n < N; n++) sums[n] = totals(sum[n]) * scale;
}

// work(first, last) for all outputs; where rows are taken together, the same ones are, however many threads there are.
template <class Work>
void in_parallel(int64_t outputs, int64_t threads, const Work& work) {
    const int64_t share = ((outputs + ROWS - 1) / ROWS + threads - 1) / threads * ROWS;
    if (threads == 1) return work(0, outputs);
#pragma omp parallel for num_threads(threads) schedule(static, 1)
    for (int64_t thread = 0; thread < threads; thread++)
        if (thread * share < outputs) work(thread * share, std::min(outputs, (thread + 1) * share));
}

// y of ROWS outputs from `o` on (those that there are), by calls of one<N>(row of x, sums) for a few rows of x.
template <int AT_MOST, class One>
void all_rows(const One& one, int64_t count, int64_t o, int64_t last, const float* bias, float* y, int64_t outputs) {
    const int64_t there = std::min<int64_t>(ROWS, last - o);
    Four added = {};
    if (bias) std::memcpy(&added, bias + o, 4 * there);
    for (int64_t n = 0; n < count;) {
        Four sums[AT_MOST];
        const int step = std::min(AT_MOST, count - n >= 4 ? 4 : count - n >= 2 ? 2 : 1);
        one(n, step, sums);
        for (int i = 0; i < step; i++) {
            const Four found = sums[i] + added;
            std::memcpy(y + (n + i) * outputs + o, &found, 4 * there);
        }
        n += step;
    }
}

template <class Codes, class Values, Sharing SHARING>
void fused_linear(const Matrix& m, const float* x, int64_t count, const float* bias, float* y, int64_t threads) {
    constexpr int AT_MOST = SHARING == PAIR ? 2 : 4;  // rows of x at a time: as many as there are registers for
    const Shape<Codes, SHARING> shape(m);
    const int64_t line = shape.COPIES * shape.line;
    std::vector<Floats> room(count * line / LANES);  // of vectors, so that none of them lies across two lines of the cache
    float* arranged = (float*)room.data();
    for (int64_t n = 0; n < count; n++) shape.arrange(m, x + n * m.inputs, arranged + n * line);
    in_parallel(m.outputs, threads, [&](int64_t first, int64_t last) {
        const int64_t whole = shape.blocks * shape.BLOCK, grids = m.groups + LANES;
        std::vector<uint8_t> bytes(ROWS * whole);
        std::vector<float> scales(SHARING == ROW ? 0 : 2 * ROWS * grids);
        for (int64_t o = first; o < last; o += ROWS) {
            Output output[ROWS];
            for (int r = 0; r < ROWS; r++) {
                const int64_t number = std::min(o + r, last - 1), grid = number * m.row_step;
                output[r] = {m.packed + number * m.row_bytes, m.scale + grid, m.zero + grid * m.zero_step, grid};
                if (number * m.row_bytes + whole > m.outputs * m.row_bytes) {  // the last block would reach beyond the matrix
                    output[r].bytes = bytes.data() + r * whole;
                    std::memcpy(bytes.data() + r * whole, m.packed + number * m.row_bytes, m.row_bytes);
                }
                if (SHARING != ROW) {
                    float* own = scales.data() + 2 * r * grids;
                    std::memcpy(own, output[r].scale, 4 * m.groups);
                    output[r].scale = own;
                    if (m.zero_step) output[r].zero = (float*)std::memcpy(own + grids, output[r].zero, 4 * m.groups);
                }
            }
            const auto one = [&](int64_t n, int step, Four* sums) {
                auto call = step == 1 ? fused<Codes, Values, SHARING, 1> : fused<Codes, Values, SHARING, 2>;
                if (step > 2) call = fused<Codes, Values, SHARING, AT_MOST>;
                call(m, shape, output, arranged + n * line, sums);
            };
            all_rows<AT_MOST>(one, count, o, last, bias, y, m.outputs);
        }
    });
}

// Codes of a row one after the other, and up to seven behind them.
void unpack(const Matrix& m, const uint8_t* bytes, uint8_t* codes) {
    if (m.bits == 0) {
        static const std::vector<uint64_t> digits = [] {
            std::vector<uint64_t> found(256);
            for (uint64_t byte = 0; byte < 256; byte++)
                for (uint64_t place = 0, rest = byte; place < 5; place++, rest /= 3) found[byte] |= rest % 3 << (8 * place);
            return found;
        }();
        for (int64_t i = 0; i < m.row_bytes; i++) std::memcpy(codes + 5 * i, &digits[bytes[i]], 8);
        return;
    }
    const uint64_t ones = (1 << m.bits) - 1;
    for (int64_t i = 0; i < m.inputs; i += 8, bytes += m.bits, codes += 8) {  // eight codes are a whole number of bytes
        uint64_t word = load<uint64_t>(bytes);
#if defined(__BMI2__)
        word = _pdep_u64(word, ones * 0x0101010101010101);
        std::memcpy(codes, &word, 8);
#else
        for (int j = 0; j < 8; j++) codes[j] = (word >> (j * m.bits)) & ones;
#endif
    }
}

// Weights of a row, as Grid.decode gives them, to the bit; `into` has room for a vector more.
void decode_row(const Matrix& m, int64_t output, uint8_t* bytes, uint8_t* codes, float* into) {
    std::memcpy(bytes, m.packed + output * m.row_bytes, m.row_bytes);  // unpacking reads on behind the row
    unpack(m, bytes, codes);
    const int64_t size = m.groups ? m.inputs / m.groups : 0;
    for (int64_t group = 0; group < m.groups; group++) {
        const int64_t grid = output * m.row_step + group, begin = group * size, end = begin + size;
        if (m.levels) {
            const float* levels = m.levels + grid * m.count;
            const Floats first = Floats{} + levels[0], second = Floats{} + levels[1], last = Floats{} + levels[m.count - 1];
            for (int64_t i = begin; i < end; i += LANES) {
                const Words code = widen_to_words(codes + i);
                const Floats value = code == 0 ? first : code == 1 ? second : last;
                std::memcpy(into + i, &value, sizeof value);
            }
        } else {
            const float zero = m.zero[grid * m.zero_step], scale = m.scale[grid];
            for (int64_t i = begin; i < end; i += LANES) {
                const Floats value = (floats(widen_to_words(codes + i)) - zero) * scale;
                std::memcpy(into + i, &value, sizeof value);
            }
        }
    }
}

// What a thread decodes rows with.
struct Buffer {
    std::vector<uint8_t> bytes, codes;
    std::vector<float> rows;
    int64_t line;
    explicit Buffer(const Matrix& m)
        : bytes(m.row_bytes + 16), codes(m.inputs + LANES + 16), rows(ROWS * (m.inputs + LANES)), line(m.inputs + LANES) {}
    const float* decode(const Matrix& m, int64_t output, int slot) {
        decode_row(m, output, bytes.data(), codes.data(), rows.data() + slot * line);
        return rows.data() + slot * line;
    }
};

template <int N>
void products(const float* weight, int64_t line, const float* x, int64_t inputs, Four* sums) {
    Floats sum[N][ROWS] = {};
    int64_t i = 0;
    for (; i + LANES <= inputs; i += LANES)
        for (int r = 0; r < ROWS; r++)
            for (int n = 0; n < N; n++) sum[n][r] += load<Floats>(weight + r * line + i) * load<Floats>(x + n * inputs + i);
    for (int n = 0; n < N; n++) {
        sums[n] = totals(sum[n]);
        for (int r = 0; r < ROWS; r++)
            for (int64_t j = i; j < inputs; j++) sums[n][r] += weight[r * line + j] * x[n * inputs + j];
    }
}

void decoded_linear(const Matrix& m, const float* x, int64_t count, const float* bias, float* y, int64_t threads) {
    in_parallel(m.outputs, threads, [&](int64_t first, int64_t last) {
        Buffer buffer(m);
        for (int64_t o = first; o < last; o += ROWS) {
            for (int r = 0; r < ROWS; r++) buffer.decode(m, std::min(o + r, last - 1), r);
            const auto one = [&](int64_t n, int step, Four* sums) {
                const auto call = step == 4 ? products<4> : step == 2 ? products<2> : products<1>;
                call(buffer.rows.data(), buffer.line, x + n * m.inputs, m.inputs, sums);
            };
            all_rows<4>(one, count, o, last, bias, y, m.outputs);
        }
    });
}

typedef void (*Linear)(const Matrix&, const float*, int64_t, const float*, float*, int64_t);

template <class Codes>
Linear way(const Matrix& m) {
    const bool grouped = m.groups > 1;
    const int64_t size = m.inputs / std::max<int64_t>(m.groups, 1);
    const bool zeros = grouped && m.zero_step, table = Codes::MASK < LANES && !zeros, pairs = grouped && size % Codes::CODES;
    if (m.levels && (grouped || !table)) return decoded_linear;
    if (pairs && (zeros || size < Codes::CODES)) return decoded_linear;
    if (pairs) return table ? fused_linear<Codes, Table, PAIR> : fused_linear<Codes, Computed, PAIR>;
    if (grouped) return table ? fused_linear<Codes, Table, GROUP> : fused_linear<Codes, Computed, GROUP>;
    return table ? fused_linear<Codes, Table, ROW> : fused_linear<Codes, Computed, ROW>;
}

Linear way(const Matrix& m) {
    switch (m.bits) {
        case 0: return way<Base3>(m);
        case 1: return way<Bits<1>>(m);
        case 2: return way<Bits<2>>(m);
        case 4: return way<Bits<4>>(m);
        case 8: return way<Bits<8>>(m);
        default: return decoded_linear;
    }
}

}  // namespace

extern "C" {

// y [count, outputs] of x [count, inputs]; bias [outputs] or null.
void linear(const Matrix* m, const float* x, int64_t count, const float* bias, float* y, int64_t threads) {
    constexpr int64_t AT_ONCE = 64;  // rows of x that stay in a cache while all weights go by
    for (int64_t n = 0; n < count; n += AT_ONCE)
        way(*m)(*m, x + n * m->inputs, std::min(AT_ONCE, count - n), bias, y + n * m->outputs, threads);
}

int64_t lanes() { return LANES; }

// Weights of outputs [first, last): [last - first, inputs].
void decode(const Matrix* m, int64_t first, int64_t last, float* into, int64_t threads) {
    in_parallel(last - first, threads, [&](int64_t begin, int64_t end) {
        Buffer buffer(*m);
        for (int64_t i = begin; i < end; i++) std::memcpy(into + i * m->inputs, buffer.decode(*m, first + i, 0), 4 * m->inputs);
    });
}

}  // extern "C"
