/** @file Where the studio starts. */
import { QueryClient, QueryClientProvider } from "@tanstack/react-query";
import { StrictMode } from "react";
import { createRoot } from "react-dom/client";
import { Router } from "wouter";
import { ApiError } from "./api/client.ts";
import { App } from "./app.tsx";
import { applyTheme } from "./theme.tsx";
import "./theme.css";
import "./ui/ui.css";
import "./app.css";

const queries = new QueryClient({
  defaultOptions: {
    queries: {
      staleTime: 2000,
      // What was refused will be refused again; a server that restarts may come back.
      retry: (count, error) => count < 2 && (!(error instanceof ApiError) || error.status === 0 || error.status >= 500),
      retryDelay: (attempt) => 500 * 2 ** attempt,
    },
  },
});

applyTheme();
createRoot(document.getElementById("root")!).render(
  <StrictMode>
    <QueryClientProvider client={queries}>
      <Router base="/studio">
        <App />
      </Router>
    </QueryClientProvider>
  </StrictMode>,
);
