"""GLSL of the renderer.

Triangles are drawn twice by cheap shaders: into the shadow map, and as triangle numbers. Colours
are then computed once per sample on a full screen, which fetches the triangle's corners by number:
most triangles are smaller than the blocks a rasteriser shades at once, so shading them as they are
drawn costs four times as much.

A material is four rows of the table: (colour, role), (second colour, pattern),
(frequency, seed, wrinkle, shine), (softness of light, grain, look row, -); a look is the eight rows
that ``clothes._look`` writes.
"""

VERTEX = """
#version 330
uniform mat4 projection;
in vec3 in_position; in vec3 in_base; in vec2 in_limbs; in float in_material; in float in_start;
out vec3 base; out vec2 limbs;
flat out int material; flat out int start;
void main() {
    base = in_base; limbs = in_limbs;
    start = int(in_start + 0.5); material = int(in_material + 0.5);
    gl_Position = projection * vec4(in_position, 1.0);
}
"""

# Which cloth lies where on the body, shared by all passes, because layers are cut by it.
INPUTS = """
#version 330
in vec3 base; in vec2 limbs;
flat in int material; flat in int start;
"""
REGIONS = """
// GLSL's own smoothstep is undefined for falling edges.
float ramp(float from, float to, float x) {
    float t = clamp((x - from) / (to - from), 0.0, 1.0);
    return t * t * (3.0 - 2.0 * t);
}
uniform sampler2D table;
vec4 row(int n) { return texelFetch(table, ivec2(0, start + n), 0); }

bool in_upper(int look) {
    vec4 k = row(look);
    if (limbs.x > k.x) return false;
    if (limbs.x < 0.3 && base.y < k.y) return false;
    float open = k.w * max(0.0, 0.75 - abs(base.x) * 1.3) * step(0.25, base.z);
    // The neckline is a slanted ring around the neck; shoulders lie outside it.
    return base.y < k.z - 0.45 * base.z - open + 1.3 * ramp(0.25, 1.15, abs(base.x));
}
bool in_lower(int look) {
    vec4 k = row(look + 1);
    return base.y <= k.x && limbs.x < 0.0 && limbs.y < k.y;
}
bool cut_away(int m) {
    int role = int(row(m).w + 0.5);
    int look = int(row(m + 3).z + 0.5);
    if (role == 4) return !in_upper(look);
    if (role == 5) return !in_lower(look);
    if (role == 6) return base.y < row(look + 3).w;
    return false;
}
"""

SHADOW = (
    INPUTS
    + REGIONS
    + """
void main() { if (cut_away(material)) discard; }
"""
)

# The number of the triangle plus one, in three bytes: integer targets are not cleared alike
# everywhere.
NUMBER = (
    INPUTS
    + REGIONS
    + """
out vec4 number;
void main() {
    if (cut_away(material)) discard;
    int n = gl_PrimitiveID + 1;
    number = vec4(n & 255, (n >> 8) & 255, (n >> 16) & 255, 255) / 255.0;
}
"""
)

NOISE = """
float hash(vec3 p) {
    p = fract(p * vec3(0.1031, 0.1030, 0.0973));
    p += dot(p, p.yxz + 33.33);
    return fract((p.x + p.y) * p.z);
}
// value, gradient
vec4 noise(vec3 x) {
    vec3 i = floor(x), f = x - i;
    vec3 u = f * f * (3.0 - 2.0 * f), du = 6.0 * f * (1.0 - f);
    float a = hash(i), b = hash(i + vec3(1, 0, 0)), c = hash(i + vec3(0, 1, 0)),
          d = hash(i + vec3(1, 1, 0)), e = hash(i + vec3(0, 0, 1)), g = hash(i + vec3(1, 0, 1)),
          h = hash(i + vec3(0, 1, 1)), k = hash(i + vec3(1, 1, 1));
    float k1 = b - a, k2 = c - a, k3 = e - a, k4 = a - b - c + d, k5 = a - c - e + h,
          k6 = a - b - e + g, k7 = -a + b + c - d + e - g - h + k;
    return vec4(a + k1 * u.x + k2 * u.y + k3 * u.z + k4 * u.x * u.y + k5 * u.y * u.z
                    + k6 * u.z * u.x + k7 * u.x * u.y * u.z,
                du * vec3(k1 + k4 * u.y + k6 * u.z + k7 * u.y * u.z,
                          k2 + k5 * u.z + k4 * u.x + k7 * u.z * u.x,
                          k3 + k6 * u.x + k5 * u.y + k7 * u.x * u.y));
}
"""

PAINT = """
// Share of the second colour at a place (decimetres); a band is as soft as a pixel is wide.
float band(float x, float width) {
    float soft = clamp(fwidth(x), 0.01, 0.5), t = abs(fract(x) - 0.5) * 2.0;
    return ramp(width + soft, width - soft, t);
}
float pattern(int kind, vec3 p, float f, float seed) {
    // One look into the noise serves the three patterns made of it.
    vec3 scale = kind == 4 ? vec3(2.0 * f) : kind == 5 ? vec3(1.5 * f) : vec3(6.0, 3.0, 0.1);
    float n = noise(p * scale + seed).x;
    float rings = band(p.y * f + seed, kind == 3 ? 0.35 : 0.45);
    float stripes = band(p.x * f + seed, kind == 3 ? 0.35 : 0.45);
    if (kind == 1) return rings;
    if (kind == 2) return stripes;
    if (kind == 3) return 0.5 * rings + 0.5 * stripes;
    if (kind == 4) return n;
    if (kind == 5) return ramp(0.52, 0.56, n);
    if (kind == 6) return clamp(p.y * 0.12 * f + 0.3, 0.0, 1.0);
    if (kind == 7) return ramp(0.32, 0.26, length(fract(p.xy * f * 1.4) - 0.5));
    vec2 q = (p.xy - vec2(0.0, 3.6)) / vec2(0.9, 0.25 + 0.5 * fract(seed * 0.37));
    float inside = step(max(abs(q.x), abs(q.y)), 1.0) * step(0.0, p.z);
    return kind == 8 ? inside * step(0.35, n) : 0.0;
}
vec3 cloth(int m, vec3 p) {
    vec4 second = row(m + 1), how = row(m + 2);
    float k = pattern(int(second.w + 0.5), p, how.x, how.y);
    return mix(row(m).rgb, second.rgb, k);
}
bool is_hair(int look) {
    float front = row(look + 2).x;
    if (front > 8.9) return false;
    // Hairline: forehead, temple, behind the ear.
    float line = mix(7.25, front, ramp(0.55, 1.05, base.z));
    line = mix(6.45, line, ramp(0.18, 0.40, base.z));
    return base.y > line && base.y > 6.3 && abs(base.x) < 1.2;
}
vec3 face(vec3 skin, int look) {
    vec3 c = skin;
    float x = abs(base.x), y = base.y, front = step(0.9, base.z);
    vec4 hair = row(look + 2), lip = row(look + 3), brow = row(look + 4);
    vec2 cheek_at = (vec2(x, y) - vec2(0.42, 6.95)) / 0.22;
    float cheek = exp(-dot(cheek_at, cheek_at));
    c *= mix(vec3(1.0), vec3(1.10, 0.90, 0.88), 0.6 * cheek * front);
    float chin = y + 0.10 * ramp(0.3, 0.7, x);
    float jaw = ramp(6.78, 6.70, chin) * ramp(5.95, 6.2, y);
    jaw = max(jaw, ramp(0.62, 0.70, x) * ramp(7.3, 7.1, y) * ramp(6.0, 6.3, y));
    jaw = max(jaw, step(abs(y - 6.77), 0.06) * ramp(0.36, 0.30, x));
    c = mix(c, brow.rgb, hair.z * jaw * ramp(0.55, 0.75, base.z));
    float u = (x - 0.32) / 0.22;
    float arc = 7.50 - 0.07 * u * u + 0.03 * u;
    float hairs = ramp(0.055, 0.025, abs(y - arc) / hair.w) * ramp(1.1, 0.85, abs(u));
    c = mix(c, brow.rgb, 0.9 * hairs * front);
    vec2 eye = (vec2(x, y) - vec2(0.315, 7.285)) / vec2(0.215, 0.10);
    float rim = length(eye);
    c = mix(c, c * 0.55, ramp(1.55, 0.9, rim) * front);
    c = mix(c, brow.rgb * 0.5, brow.w * ramp(1.18, 1.0, rim) * step(7.26, y) * front);
    float q = x / 0.27;
    float mouth = (y - 6.635) / (0.115 * max(0.0, 1.0 - q * q) + 0.002);
    if (front > 0.5 && q < 1.0 && abs(mouth) < 1.0) {
        c = lip.rgb;
        c = mix(c, lip.rgb * 0.25, ramp(0.22, 0.05, abs(mouth)));
    }
    float nostril = length((vec2(x, y) - vec2(0.085, 6.80)) / vec2(0.05, 0.03));
    c = mix(c, skin * 0.3, ramp(1.1, 0.7, nostril) * front);
    return c;
}
vec3 eye_colour(int look) {
    float r = length(vec2(abs(base.x) - 0.308, base.y - 7.284));
    vec3 c = mix(row(look + 5).rgb, vec3(0.70, 0.68, 0.66), ramp(0.072, 0.082, r));
    return mix(vec3(0.005), c, ramp(0.030, 0.040, r));
}
// The material seen at a place of the painted body: its own where the skin is bare.
int body_material(int m, int look) {
    vec4 rows = row(look + 6), flags = row(look + 7), ends = row(look + 1);
    if (limbs.y > ends.z) return int(rows.z + 0.5);
    if (limbs.x > ends.w) return int(flags.z + 0.5);
    if (flags.x > 0.5 && in_upper(look)) return int(rows.x + 0.5);
    if (flags.y > 0.5 && in_lower(look)) return int(rows.y + 0.5);
    return is_hair(look) ? int(rows.w + 0.5) : m;
}
"""

# At the far plane: the depth test "greater" then leaves out samples where nothing was drawn.
SCREEN = """
#version 330
in vec2 in_corner;
void main() { gl_Position = vec4(in_corner, 1.0, 1.0); }
"""

# The mean of nine samples, 1 2 1 in each direction: four bilinear looks between the samples.
RESOLVE = """
#version 330
uniform sampler2D samples;
out vec4 colour;
void main() {
    vec2 size = vec2(textureSize(samples, 0)), centre = 2.0 * gl_FragCoord.xy + 0.5;
    vec4 total = vec4(0.0);
    for (int k = 0; k < 4; k++) {
        vec2 off = vec2(k & 1, k >> 1) - 0.5;
        total += texture(samples, (centre + off) / size);
    }
    colour = 0.25 * total;
}
"""

FETCH = """
#version 330
const int WIDE = 1024;
vec3 world, normal, base; vec2 limbs; int material, start;
uniform sampler2D numbers;         // triangle numbers as drawn
uniform isampler2D triangles;      // three vertex numbers each
uniform sampler2D moving;          // two texels a vertex: position, normal
uniform sampler2D constant;        // two texels a vertex: base and material, limbs and table start
uniform mat3 ray_matrix;           // sample to direction in the world
uniform vec3 eye;                  // of the camera
ivec2 place(int n) { return ivec2(n % WIDE, n / WIDE); }
int code_at(ivec2 at) {
    vec4 code = texelFetch(numbers, at, 0) * 255.0 + 0.5;
    return int(code.x) + 256 * int(code.y) + 65536 * int(code.z) - 1;
}
void fetch(int n, vec2 at) {
    ivec4 corner = texelFetch(triangles, place(n), 0);
    ivec3 v = 2 * corner.xyz;
    vec3 a = texelFetch(moving, place(v.x), 0).xyz - eye,
         b = texelFetch(moving, place(v.y), 0).xyz - eye,
         c = texelFetch(moving, place(v.z), 0).xyz - eye;
    vec3 ray = ray_matrix * vec3(at, 1.0);
    vec3 across = cross(b - a, c - a);
    vec3 hit = ray * (dot(across, a) / dot(across, ray)) - a;
    // Barycentric weights by the squared area, which is safe for small triangles.
    float area = dot(across, across) + 1e-30;
    float wb = dot(cross(hit, c - a), across) / area, wc = dot(cross(b - a, hit), across) / area;
    vec3 w = clamp(vec3(1.0 - wb - wc, wb, wc), 0.0, 1.0);
    w /= w.x + w.y + w.z;
    world = eye + w.x * a + w.y * b + w.z * c;
    normal = w.x * texelFetch(moving, place(v.x + 1), 0).xyz
           + w.y * texelFetch(moving, place(v.y + 1), 0).xyz
           + w.z * texelFetch(moving, place(v.z + 1), 0).xyz;
    vec4 first = texelFetch(constant, place(v.x), 0),
         first2 = texelFetch(constant, place(v.x + 1), 0);
    base = w.x * first.xyz + w.y * texelFetch(constant, place(v.y), 0).xyz
         + w.z * texelFetch(constant, place(v.z), 0).xyz;
    limbs = w.x * first2.xy + w.y * texelFetch(constant, place(v.y + 1), 0).xy
          + w.z * texelFetch(constant, place(v.z + 1), 0).xy;
    material = int(first.w + 0.5); start = int(first2.z + 0.5);
}
"""

LIT = """
uniform mat4 shadow_matrix;
uniform float shadow_blur;
uniform sampler2DShadow shadow_map;
float lit(vec3 world, vec3 n) {
    vec4 p = shadow_matrix * vec4(world + n * 0.012, 1.0);
    if (any(greaterThan(abs(p.xyz - 0.5), vec3(0.5)))) return 1.0;
    float total = 0.0, turn = 6.2832 * hash(world * 311.7);
    for (int k = 0; k < 6; k++) {
        float a = turn + 2.399963 * float(k), r = sqrt((float(k) + 0.5) / 6.0);
        vec2 off = shadow_blur * r * vec2(cos(a), sin(a));
        total += texture(shadow_map, vec3(p.xy + off, p.z - 0.0012));
    }
    return total / 6.0;
}
"""

# A floor that shows only the shadow on it: black, as opaque as the shadow is dark.
FLOOR_VERTEX = """
#version 330
uniform mat4 projection;
in vec3 in_position; in vec2 in_place;
out vec3 world; out vec2 place;
void main() { world = in_position; place = in_place; gl_Position = projection * vec4(world, 1.0); }
"""

FLOOR = (
    """
#version 330
in vec3 world; in vec2 place;
uniform float darkest;
out vec4 colour;
"""
    + NOISE
    + LIT
    + """
void main() {
    float fade = clamp((1.0 - max(abs(place.x), abs(place.y))) / 0.15, 0.0, 1.0);
    colour = vec4(0.0, 0.0, 0.0, fade * darkest * (1.0 - lit(world, vec3(0.0, 1.0, 0.0))));
}
"""
)

COLOUR = (
    FETCH
    + REGIONS
    + NOISE
    + LIT
    + PAINT
    + """
uniform vec3 key_to, key_light;    // direction to the light that throws shadows, its colour
uniform vec3 fill_to[2], fill_light[2];
uniform vec3 sky, ground;          // light from above and below
out vec4 colour;

vec3 surface(int role, vec3 n, vec3 view, float open_to_key) {
    int look = int(row(material + 3).z + 0.5);
    int shown = role == 1 ? body_material(material, look) : material;
    bool hair = int(row(shown).w + 0.5) == 3;
    vec3 albedo = cloth(shown, base);
    vec4 how = row(shown + 2), more = row(shown + 3);
    for (int eyes = role == 2 ? 1 : 0; eyes > 0; eyes--) albedo = eye_colour(look);
    bool head = role == 1 && shown == material && base.y > 6.0 && limbs.x < -0.3;
    for (int once = head ? 1 : 0; once > 0; once--) albedo = face(albedo, look);
    for (int once = hair ? 1 : 0; once > 0; once--) {
        float strand = noise(base * vec3(22.0, 2.5, 22.0) + how.y).x;
        albedo *= 0.45 + 1.1 * strand;
        n = normalize(n + 0.5 * (strand - 0.5) * vec3(1.0, 0.0, 0.0));
    }
    for (int once = hair ? 0 : 1; once > 0; once--) {
        vec4 folds = noise(base * vec3(1.5, 0.9, 1.5) + how.y), fine = noise(base * 5.5 + how.y);
        n = normalize(n - how.z * (0.45 * folds.yzw + 0.16 * fine.yzw));
        albedo *= 1.0 + more.y * (fine.x + folds.x - 1.0);
    }
    float soft = more.x;
    vec3 light = mix(ground, sky, 0.5 + 0.5 * n.y);
    light += key_light * open_to_key * max(0.0, (dot(n, key_to) + soft) / (1.0 + soft));
    float sharp = max(0.0, dot(n, normalize(key_to + view)));
    sharp *= sharp; sharp *= sharp; sharp *= sharp; sharp *= sharp;
    vec3 gloss = how.w * key_light * open_to_key * sharp;
    for (int k = 0; k < 2; k++)
        light += fill_light[k] * max(0.0, (dot(n, fill_to[k]) + soft) / (1.0 + soft));
    // Light does not reach creases between body and arm: darker where the surface looks away.
    float rim = 0.82 + 0.18 * max(0.0, dot(n, view));
    vec3 c = albedo * light * rim + gloss;
    return pow(clamp(c, 0.0, 1.0), vec3(0.4545));
}
void main() {
    fetch(code_at(ivec2(gl_FragCoord.xy)), gl_FragCoord.xy - 0.5);
    vec3 n = normalize(normal), view = normalize(eye - world);
    if (dot(n, view) < 0.0) n = -n;
    colour = vec4(surface(int(row(material).w + 0.5), n, view, lit(world, n)), 1.0);
}
"""
)
