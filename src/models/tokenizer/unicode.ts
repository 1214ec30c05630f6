/** @file Where the reference goes by an older version of Unicode than JavaScript: characters as it sees them. */

/** A character class of runs such as "61d 2e43-2e4f". */
const classOf = (runs: string): string => runs.replace(/[0-9a-f]+/g, "\\u{$&}").replaceAll(" ", "");

const NEWER_PUNCTUATION = classOf(
  "61d 9fd a76 c77 c84 1b4e-1b4f 1b7d-1b7f 2e43-2e4f 2e52-2e5d 10d6e 10ead 10ed0 10f55-10f59 10f86-10f89 " +
    "113d4-113d5 113d7-113d8 1144b-1144f 1145a-1145b 1145d 11660-1166c 116b9 1183b 11944-11946 119e2 11a3f-11a46 " +
    "11a9a-11a9c 11a9e-11aa2 11b00-11b09 11be1 11c41-11c45 11c70-11c71 11ef7-11ef8 11f43-11f4f 11fff 12ff1-12ff2 " +
    "16d6d-16d6f 16e97-16e9a 16fe2 1e5ff 1e95e-1e95f",
);

/** Punctuation of ASCII and of Unicode 8. */
export const PUNCTUATION = new RegExp(`(?![${NEWER_PUNCTUATION}])[\\p{P}!-/:-@[-\`{-~\\u166d\\u{111c9}]`, "gu");

/** Characters that normal forms change or move since, and the reference does not. */
const NEWER_FORMS = classOf(
  "7fd 897-89f 8ca-8d3 9fe c3c d3b-d3c eba 1715 1abf-1add 1ae0-1aeb 1df6-1dfa 32ff a7f1-a7f4 a82c ab69 105c9 " +
    "105e4 10781-10785 10787-107b0 107b2-107ba 10d24-10d27 10d69-10d6d 10eab-10eac 10efa-10efb 10efd-10eff " +
    "10f46-10f50 10f82-10f85 11070 1133b 11383 11385 1138e 11391 113c5 113c7-113c8 113ce-113d0 1145e 11839-1183a " +
    "11938 1193d-1193e 11943 119e0 11a34 11a47 11a99 11d42 11d44-11d45 11d97 11f41-11f42 16121-16128 1612f " +
    "16d68-16d6a 16ff0-16ff1 1ccd6-1ccf9 1e030-1e06d 1e08f 1e130-1e136 1e2ae 1e2ec-1e2ef 1e4ec-1e4ef 1e5ee-1e5ef " +
    "1e6e3 1e6e6 1e6ee-1e6ef 1e6f5 1f16c 1fbf0-1fbf9",
);
const NEWER_FORM = new RegExp(`[${NEWER_FORMS}]`, "u");
const BETWEEN_NEWER_FORMS = new RegExp(`[^${NEWER_FORMS}]+`, "gu");

/** The normal form of a text as Unicode 9 has it. */
export function normalForm(text: string, form: "NFC" | "NFD" | "NFKC" | "NFKD"): string {
  if (!NEWER_FORM.test(text)) return text.normalize(form);
  return text.replace(BETWEEN_NEWER_FORMS, (part) => part.normalize(form));
}
