/** @file Whether a device computes attention rightly: drivers differ in what the runtime's kernel takes for granted. */
import type { DeviceName } from "./devices.ts";
import { Session } from "./session.ts";
import { Tensor } from "./tensor.ts";

const TOKENS = 40;
const WIDTH = 8;

/** y, present = GroupQueryAttention(query, key, value, last, total): one head of 8 features, 40 tokens. */
const WHOLE =
  "CAoSBm1pbG9yYTrDAwrSAQoFcXVlcnkKA2tleQoFdmFsdWUKAAoACgRsYXN0CgV0b3RhbBIBeRILcHJlc2VudC5rZXkSDXByZXNlbnQudmFsdWUaFWdyb3VwUXVlcnlBdHRlbnRpb24jMCITR3JvdXBRdWVyeUF0dGVudGlvbioQCgludW1faGVhZHMYAaABAioTCgxrdl9udW1faGVhZHMYAaABAioQCglkb19yb3RhcnkYAKABAioZChJyb3RhcnlfaW50ZXJsZWF2ZWQYAKABAjoNY29tLm1pY3Jvc29mdBIJYXR0ZW50aW9uWhsKBXF1ZXJ5EhIKEAgBEgwKAggBCgIIKAoCCAhaGQoDa2V5EhIKEAgBEgwKAggBCgIIKAoCCAhaGwoFdmFsdWUSEgoQCAESDAoCCAEKAggoCgIICFoSCgRsYXN0EgoKCAgGEgQKAggBWg8KBXRvdGFsEgYKBAgGEgBiFwoBeRISChAIARIMCgIIAQoCCCgKAggIYiUKC3ByZXNlbnQua2V5EhYKFAgBEhAKAggBCgIIAQoCCCgKAggIYicKDXByZXNlbnQudmFsdWUSFgoUCAESEAoCCAEKAggBCgIIKAoCCAhCBAoAEBVCEQoNY29tLm1pY3Jvc29mdBAB";
/** The same with a window of 5 tokens. */
const LOCAL =
  "CAoSBm1pbG9yYTrdAwrsAQoFcXVlcnkKA2tleQoFdmFsdWUKAAoACgRsYXN0CgV0b3RhbBIBeRILcHJlc2VudC5rZXkSDXByZXNlbnQudmFsdWUaFWdyb3VwUXVlcnlBdHRlbnRpb24jMCITR3JvdXBRdWVyeUF0dGVudGlvbioQCgludW1faGVhZHMYAaABAioTCgxrdl9udW1faGVhZHMYAaABAioQCglkb19yb3RhcnkYAKABAioZChJyb3RhcnlfaW50ZXJsZWF2ZWQYAKABAioYChFsb2NhbF93aW5kb3dfc2l6ZRgFoAECOg1jb20ubWljcm9zb2Z0EglhdHRlbnRpb25aGwoFcXVlcnkSEgoQCAESDAoCCAEKAggoCgIICFoZCgNrZXkSEgoQCAESDAoCCAEKAggoCgIICFobCgV2YWx1ZRISChAIARIMCgIIAQoCCCgKAggIWhIKBGxhc3QSCgoICAYSBAoCCAFaDwoFdG90YWwSBgoECAYSAGIXCgF5EhIKEAgBEgwKAggBCgIIKAoCCAhiJQoLcHJlc2VudC5rZXkSFgoUCAESEAoCCAEKAggBCgIIKAoCCAhiJwoNcHJlc2VudC52YWx1ZRIWChQIARIQCgIIAQoCCAEKAggoCgIICEIECgAQFUIRCg1jb20ubWljcm9zb2Z0EAE=";

const verdicts = new Map<DeviceName, boolean>();

/**
 * Whether `GroupQueryAttention` of float32 serves on a device, for so many new tokens of a sequence. That of CUDA takes
 * no float32. That of WebGPU leaves scores uncapped, and is wrong for 32 tokens and more where the driver's subgroups have fewer than eight lanes
 * (SwiftShader's have four): nothing says how many there are, so it is tried, once.
 *
 * @param tokens their number, or a symbol where it is known at run time only
 */
export function hasFusedAttention(device: DeviceName, tokens: number | string, softcap = 0): boolean {
  if (device === "cpu") return true;
  if (device === "cuda" || softcap !== 0) return false;
  if (tokens === 1) return true;
  const known = verdicts.get(device);
  if (known !== undefined) return known;
  const verdict = [WHOLE, LOCAL].every((model) => {
    const [wanted, found] = [attend(model, "cpu"), attend(model, device)];
    return found.every((x, i) => Math.abs(x - wanted[i]!) < 1e-3);
  });
  verdicts.set(device, verdict);
  return verdict;
}

function attend(model: string, device: DeviceName): Float32Array {
  const numbers = (phase: number): Tensor =>
    Tensor.from(
      "float32",
      [1, TOKENS, WIDTH],
      Float32Array.from({ length: TOKENS * WIDTH }, (_, i) => Math.sin(phase + 1.7 * i)),
    );
  using session = Session.create(Buffer.from(model, "base64"), { device });
  using query = numbers(0);
  using key = numbers(1);
  using value = numbers(2);
  using last = Tensor.from("int32", [1], Int32Array.of(TOKENS - 1));
  using total = Tensor.scalar("int32", TOKENS);
  const { y } = session.call({ query, key, value, last, total }, ["y"]);
  using result = y!;
  return Float32Array.from(result.data as Float32Array);
}
