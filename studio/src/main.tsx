/** @file Where the studio starts. */
