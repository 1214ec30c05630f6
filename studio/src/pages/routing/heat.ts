/** @file How strongly a cell is coloured, and which colour of text is read on it in both themes. */
import { heatColor } from "../../ui/index.ts";

/** From where on white is read better than black in the light theme, and black better than white in the dark one. */
const [LIGHT, DARK] = [0.71, 0.58];

export function heat(share: number): { readonly style: { readonly background: string }; readonly tone: string } {
  const tone = share < DARK ? "faint" : share < LIGHT ? "middling" : "deep";
  return { style: { background: heatColor(share) }, tone };
}

/** Probabilities of seven experts are small: their square root tells 0.05 and 0.15 apart, and 0.5 and 1 still. */
export const heatOfProbability = (probability: number) => heat(Math.sqrt(probability));
