/** @file Which steps are shown, and how: fields for the range, the whole, logarithms, smoothing. */
import { type FormEvent, useEffect, useState } from "react";
import { Button, Checkbox, SelectField, TextField } from "../../ui/index.ts";
import { type Address, rangeOf, SMOOTHINGS, viewOf } from "./address.ts";

export function RangeControls({ address, last }: { address: Address; last: number }) {
  const { from, to } = rangeOf(address);
  const { log, smooth } = viewOf(address);
  const [typed, setTyped] = useState({ from: "", to: "" });
  useEffect(() => setTyped({ from: from?.toString() ?? "", to: to?.toString() ?? "" }), [from, to]);
  const wrong =
    typed.from !== "" && typed.to !== "" && Number(typed.from) > Number(typed.to) ? "lies after the last" : undefined;
  const apply = (event: FormEvent) => {
    event.preventDefault();
    if (wrong === undefined) address.set(typed);
  };
  const field = (name: "from" | "to", label: string, placeholder: number, problem?: string) => (
    <TextField
      {...{ label, problem }}
      type="number"
      min="0"
      step="1"
      placeholder={String(placeholder)}
      value={typed[name]}
      onChange={({ target }) => setTyped({ ...typed, [name]: target.value })}
    />
  );
  return (
    <form className="row end range" onSubmit={apply} aria-label="What is shown">
      {field("from", "From step", 1, wrong)}
      {field("to", "To step", last)}
      <Button type="submit">Show</Button>
      <Button
        disabled={from === undefined && to === undefined}
        onClick={() => address.set({ from: undefined, to: undefined })}
      >
        All steps
      </Button>
      <SelectField
        label="Smoothing"
        value={String(smooth)}
        options={SMOOTHINGS.map((value) => [value, value === "0" ? "none" : value] as const)}
        onChange={({ target }) => address.set({ smooth: target.value === "0" ? undefined : target.value })}
      />
      <Checkbox
        label="Logarithmic"
        checked={log}
        onChange={({ target }) => address.set({ log: target.checked ? "1" : undefined })}
      />
    </form>
  );
}
