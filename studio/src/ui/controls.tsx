/** @file Buttons, fields, and what copies. */
import {
  type ButtonHTMLAttributes,
  type InputHTMLAttributes,
  type ReactNode,
  type SelectHTMLAttributes,
  type TextareaHTMLAttributes,
  useEffect,
  useId,
  useState,
} from "react";

interface ButtonProps extends ButtonHTMLAttributes<HTMLButtonElement> {
  kind?: "plain" | "primary" | "danger";
  small?: boolean;
}

export function Button({ kind = "plain", small = false, type = "button", className = "", ...rest }: ButtonProps) {
  return <button type={type} className={`button ${kind}${small ? " small" : ""} ${className}`.trimEnd()} {...rest} />;
}

interface FieldParts {
  label: ReactNode;
  hint?: ReactNode;
  /** What is wrong with what is in it. */
  problem?: string | undefined;
}

/** The label, hint and problem of a control; `control` gets the attributes that tie it to them. */
export function Field({
  label,
  hint,
  problem,
  control,
}: FieldParts & {
  control: (tied: { id: string; "aria-describedby"?: string; "aria-invalid"?: true }) => ReactNode;
}) {
  const id = useId();
  const described = [hint !== undefined && `${id}-hint`, problem !== undefined && `${id}-problem`].filter(Boolean);
  return (
    <div className="field">
      <label htmlFor={id}>{label}</label>
      {control({
        id,
        ...(described.length > 0 && { "aria-describedby": described.join(" ") }),
        ...(problem !== undefined && { "aria-invalid": true as const }),
      })}
      {hint !== undefined && (
        <span className="hint" id={`${id}-hint`}>
          {hint}
        </span>
      )}
      {problem !== undefined && (
        <span className="wrong" id={`${id}-problem`}>
          {problem}
        </span>
      )}
    </div>
  );
}

export function TextField({ label, hint, problem, ...rest }: FieldParts & InputHTMLAttributes<HTMLInputElement>) {
  return <Field {...{ label, hint, problem }} control={(tied) => <input type="text" {...tied} {...rest} />} />;
}

export function TextArea({ label, hint, problem, ...rest }: FieldParts & TextareaHTMLAttributes<HTMLTextAreaElement>) {
  return <Field {...{ label, hint, problem }} control={(tied) => <textarea {...tied} {...rest} />} />;
}

export function SelectField({
  label,
  hint,
  problem,
  options,
  ...rest
}: FieldParts &
  SelectHTMLAttributes<HTMLSelectElement> & { options: readonly (string | readonly [value: string, text: string])[] }) {
  return (
    <Field
      {...{ label, hint, problem }}
      control={(tied) => (
        <select {...tied} {...rest}>
          {options.map((option) => {
            const [value, text] = typeof option === "string" ? [option, option] : option;
            return (
              <option key={value} value={value}>
                {text}
              </option>
            );
          })}
        </select>
      )}
    />
  );
}

export function Checkbox({ label, ...rest }: { label: ReactNode } & InputHTMLAttributes<HTMLInputElement>) {
  return (
    <label className="row nowrap">
      <input type="checkbox" {...rest} />
      {label}
    </label>
  );
}

/** Copies a text and says so. */
export function CopyButton({ text, label = "Copy" }: { text: string | (() => string); label?: string }) {
  const [copied, setCopied] = useState<boolean>();
  useEffect(() => {
    if (copied === undefined) return;
    const timer = setTimeout(() => setCopied(undefined), 2000);
    return () => clearTimeout(timer);
  }, [copied]);
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(typeof text === "string" ? text : text());
      setCopied(true);
    } catch {
      setCopied(false); // not allowed, or not over https
    }
  };
  return (
    <Button small onClick={() => void copy()}>
      {label}
      <span role="status">{copied === undefined ? "" : copied ? "✓ copied" : "✗ select and copy by hand"}</span>
    </Button>
  );
}

/** Gives the reader a file that is made here. */
export function DownloadButton({
  name,
  type,
  text,
  label,
}: {
  name: string;
  type: string;
  text: () => string;
  label: string;
}) {
  const download = () => {
    const url = URL.createObjectURL(new Blob([text()], { type }));
    const link = document.createElement("a");
    link.href = url;
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(url), 10_000);
  };
  return (
    <Button small onClick={download}>
      {label}
    </Button>
  );
}
