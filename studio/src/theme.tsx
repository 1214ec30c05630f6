/** @file Light, dark, or as the system has it. */
import { useState } from "react";

const THEMES = ["auto", "light", "dark"] as const;
const KEY = "milora-theme";

/** Takes what was chosen last, before anything is drawn. */
export function applyTheme(theme = localStorage.getItem(KEY) ?? "auto"): void {
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
}

export function ThemeChoice() {
  const [theme, setTheme] = useState(() => localStorage.getItem(KEY) ?? "auto");
  const choose = (chosen: string) => {
    localStorage.setItem(KEY, chosen);
    applyTheme(chosen);
    setTheme(chosen);
  };
  return (
    <label className="theme">
      <span className="unseen">Colours</span>
      <select value={theme} onChange={(event) => choose(event.target.value)}>
        {THEMES.map((name) => (
          <option key={name}>{name}</option>
        ))}
      </select>
    </label>
  );
}
